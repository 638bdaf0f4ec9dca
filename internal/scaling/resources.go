package scaling

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// defaultMaxPods is the kubelet's own default, which counts where a pool does
// not say how many pods a node takes.
const defaultMaxPods = 110

const ephemeralStorage = "ephemeral-storage"

// Resources are amounts as the scheduler counts them.
type Resources struct {
	CPUMilli    int64            `json:"cpu_milli"`
	MemoryBytes int64            `json:"memory_bytes"`
	Pods        int64            `json:"pods,omitempty"`
	Extended    map[string]int64 `json:"extended,omitempty"`
}

func (r Resources) clone() Resources {
	r.Extended = maps.Clone(r.Extended)
	return r
}

// add changes r in place; r must own its map.
func (r *Resources) add(o Resources) { r.apply(o, 1) }
func (r *Resources) sub(o Resources) { r.apply(o, -1) }

func (r *Resources) apply(o Resources, sign int64) {
	r.CPUMilli += sign * o.CPUMilli
	r.MemoryBytes += sign * o.MemoryBytes
	r.Pods += sign * o.Pods
	for k, v := range o.Extended {
		if r.Extended == nil {
			r.Extended = map[string]int64{}
		}
		r.Extended[k] += sign * v
	}
}

// lacks names the first resource of which free has less than r asks for, or
// "". The amounts of a pod that is already placed are not asked again, so that
// an overcommitted resource blocks only those who want some of it.
func (r Resources) lacks(free Resources) string {
	switch {
	case r.CPUMilli > 0 && r.CPUMilli > free.CPUMilli:
		return "cpu"
	case r.MemoryBytes > 0 && r.MemoryBytes > free.MemoryBytes:
		return "memory"
	case r.Pods > 0 && r.Pods > free.Pods:
		return "pods"
	case len(r.Extended) == 0: // as of most pods
		return ""
	}
	for _, k := range slices.Sorted(maps.Keys(r.Extended)) {
		if r.Extended[k] > 0 && r.Extended[k] > free.Extended[k] {
			return k
		}
	}
	return ""
}

// asks names the resources of which r asks for some.
func (r Resources) asks() []string {
	out := make([]string, 0, 3+len(r.Extended))
	for _, name := range []string{"cpu", "memory", "pods"} {
		if r.amount(name) > 0 {
			out = append(out, name)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(r.Extended)) {
		if r.Extended[k] > 0 {
			out = append(out, k)
		}
	}
	return out
}

// places is how often free has what r asks for.
func (r Resources) places(free Resources) int64 {
	n := int64(-1)
	among := func(asked, free int64) {
		if asked <= 0 {
			return
		}
		if p := max(free, 0) / asked; n < 0 || p < n {
			n = p
		}
	}
	among(r.CPUMilli, free.CPUMilli)
	among(r.MemoryBytes, free.MemoryBytes)
	among(r.Pods, free.Pods)
	for name, asked := range r.Extended {
		among(asked, free.Extended[name])
	}
	return max(n, 0)
}

// costs is what a pod of o takes at most of the places for r, in thousandths.
func (r Resources) costs(o Resources) int64 {
	most := max(thousandths(o.CPUMilli, r.CPUMilli), thousandths(o.MemoryBytes, r.MemoryBytes), thousandths(o.Pods, r.Pods))
	for name, asked := range r.Extended {
		most = max(most, thousandths(o.Extended[name], asked))
	}
	return most
}

// thousandths is a/b in thousandths, rounded up; nothing where b does not count.
func thousandths(a, b int64) int64 {
	if a <= 0 || b <= 0 {
		return 0
	}
	return (a*1000 + b - 1) / b
}

func (r Resources) amount(name string) int64 {
	switch name {
	case "cpu":
		return r.CPUMilli
	case "memory":
		return r.MemoryBytes
	case "pods":
		return r.Pods
	}
	return r.Extended[name]
}

// format writes an amount of the named resource for people.
func format(name string, v int64) string {
	switch {
	case name == "cpu":
		return fmt.Sprintf("%dm", v)
	case name == "memory", name == ephemeralStorage, strings.HasPrefix(name, "hugepages-"):
		if v%(1<<20) == 0 || v > 1<<30 {
			return fmt.Sprintf("%dMi", v>>20)
		}
		return fmt.Sprintf("%d bytes", v)
	}
	return fmt.Sprint(v)
}

// permille returns a/b in thousandths, 0 where b is not positive. Integers
// keep the result the same on every architecture.
func permille(a, b int64) int64 {
	if b <= 0 || a <= 0 {
		return 0
	}
	if a > 1<<53 { // amounts of memory times 1000 must not overflow
		return a / max(b/1000, 1)
	}
	return a * 1000 / b
}

// share is max(cpu, memory) of r in thousandths of all.
func (r Resources) share(all Resources) int64 {
	return max(permille(r.CPUMilli, all.CPUMilli), permille(r.MemoryBytes, all.MemoryBytes))
}

func percent(permille int64) string {
	return strconv.FormatInt(permille/10, 10) + "." + strconv.FormatInt(permille%10, 10) + "%"
}

// count is a number with its noun.
func count(n int, noun string) string { return agree(n, noun, noun+"s") }

// agree is a number with the words that agree with it.
func agree(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

func cmpString(a, b string) int { return strings.Compare(a, b) }

// cmpStrings compares pairs, the first that differs decides.
func cmpStrings(pairs ...string) int {
	for i := 0; i+1 < len(pairs); i += 2 {
		if c := strings.Compare(pairs[i], pairs[i+1]); c != 0 {
			return c
		}
	}
	return 0
}
