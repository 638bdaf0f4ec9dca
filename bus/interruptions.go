package bus

import (
	"cmp"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"k8s.io/utils/clock"
)

// maxReasons bounds how many different reasons one line names.
const maxReasons = 5

// interruptions says in one line which pulls were interrupted, and why: when a
// server fails over, every partition of every handler is, and a line for each
// would hide the rest of the log.
//
//	first ──gather──► line ──at least rest──► line, if there were more ...
type interruptions struct {
	log          *slog.Logger
	clk          wireClock
	gather, rest time.Duration

	mu      sync.Mutex
	pulls   map[pullOf]bool
	reasons map[string]int // how many interruptions, by reason
	said    time.Time      // when the last line was written
	due     clock.Timer    // writes the next one; nil: there is nothing to say
}

// pullOf is one partition of a handler.
type pullOf struct {
	reader    string // the name of its consumers, without the partition
	partition int
}

func newInterruptions(log *slog.Logger, clk wireClock, t Times) *interruptions {
	return &interruptions{
		log: log, clk: clk,
		// Within it every partition has met what there is to meet.
		gather: 2 * t.BackoffMin,
		// A pull that stays interrupted says so as often as it is tried again.
		rest:  t.BackoffMax,
		pulls: map[pullOf]bool{}, reasons: map[string]int{},
	}
}

// add notes an interruption; it is logged a moment later.
func (i *interruptions) add(p pullOf, err error) {
	// Partitions that are interrupted for the same reason say the same.
	reason := strings.TrimPrefix(err.Error(), "consumer "+consumerName(p.reader, p.partition)+": ")
	i.mu.Lock()
	defer i.mu.Unlock()
	i.pulls[p] = true
	i.reasons[reason]++
	if i.due == nil {
		wait := i.gather
		if !i.said.IsZero() {
			wait = max(wait, i.rest-i.clk.Since(i.said))
		}
		i.due = i.clk.AfterFunc(wait, i.flush)
	}
}

// flush logs what was noted, now.
func (i *interruptions) flush() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.due == nil {
		return
	}
	i.due.Stop()
	i.due, i.said = nil, i.clk.Now()
	i.log.Warn("pulling events interrupted, it goes on", "partitions", len(i.pulls), "which", i.which(), "why", i.why())
	clear(i.pulls)
	clear(i.reasons)
}

// which is, e.g., "draining 0-15, provisioning 3".
func (i *interruptions) which() string {
	by := map[string][]int{}
	for p := range i.pulls {
		by[p.reader] = append(by[p.reader], p.partition)
	}
	var out []string
	for _, reader := range slices.Sorted(maps.Keys(by)) {
		slices.Sort(by[reader])
		out = append(out, reader+" "+ranges(by[reader]))
	}
	return strings.Join(out, ", ")
}

// ranges writes sorted numbers, e.g. "0-3 7".
func ranges(sorted []int) string {
	var out []string
	for len(sorted) > 0 {
		n := 1
		for n < len(sorted) && sorted[n] == sorted[0]+n {
			n++
		}
		text := strconv.Itoa(sorted[0])
		if n > 1 {
			text += "-" + strconv.Itoa(sorted[n-1])
		}
		out = append(out, text)
		sorted = sorted[n:]
	}
	return strings.Join(out, " ")
}

// why names the reasons, the most frequent first, e.g. "nats: leadership change (15 times)".
func (i *interruptions) why() string {
	reasons := slices.SortedFunc(maps.Keys(i.reasons), func(a, b string) int {
		return cmp.Or(cmp.Compare(i.reasons[b], i.reasons[a]), cmp.Compare(a, b))
	})
	var out []string
	for n, reason := range reasons {
		if n == maxReasons {
			out = append(out, fmt.Sprintf("and %d other reasons", len(reasons)-n))
			break
		}
		if times := i.reasons[reason]; times > 1 {
			reason = fmt.Sprintf("%s (%d times)", reason, times)
		}
		out = append(out, reason)
	}
	return strings.Join(out, "; ")
}
