package docker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/provider"
)

// placeFor is how long room is kept for a machine whose creation does not come:
// between the two lies one write of a record.
const placeFor = 2 * time.Minute

// settleFor is how long room is kept after a creation: a list that was begun
// before it does not show the machine.
const settleFor = 30 * time.Second

// size is what a machine may take of its host.
type size struct{ cpuMilli, memoryBytes int64 }

// candidate is a host as it is when a machine is placed.
type candidate struct {
	name     string
	err      error // it does not answer
	total    size  // what machines may have of it together
	used     size
	need     size // of the machine to be placed
	nodes    int  // of the pool
	maxNodes int  // of the pool; 0: any number
}

// lacks says why the machine has no place on the host, or "".
func (c candidate) lacks() string {
	switch cpu, memory := c.total.cpuMilli-c.used.cpuMilli, c.total.memoryBytes-c.used.memoryBytes; {
	case c.never() != "":
		return c.never()
	case c.maxNodes > 0 && c.nodes >= c.maxNodes:
		return fmt.Sprintf("has %d nodes of the pool, its max_nodes", c.nodes)
	case cpu < c.need.cpuMilli:
		return fmt.Sprintf("has %dm of %dm of CPU left, the machine needs %dm", max(cpu, 0), c.total.cpuMilli, c.need.cpuMilli)
	case memory < c.need.memoryBytes:
		return fmt.Sprintf("has %s of %s of memory left, the machine needs %s", mebibytes(max(memory, 0)), mebibytes(c.total.memoryBytes), mebibytes(c.need.memoryBytes))
	}
	return ""
}

// never says why the machine would have no place on the empty host either, or "".
func (c candidate) never() string {
	switch {
	case c.total.cpuMilli < c.need.cpuMilli:
		return fmt.Sprintf("has %dm of CPU, less than the %dm of the machine", c.total.cpuMilli, c.need.cpuMilli)
	case c.total.memoryBytes < c.need.memoryBytes:
		return fmt.Sprintf("has %s of memory, less than the %s of the machine", mebibytes(c.total.memoryBytes), mebibytes(c.need.memoryBytes))
	}
	return ""
}

// load is the share of the host that is used, in millionths of its scarcer half.
func (c candidate) load() int64 {
	return max(c.used.cpuMilli*1_000_000/max(c.total.cpuMilli, 1), c.used.memoryBytes/1024*1_000_000/max(c.total.memoryBytes/1024, 1))
}

// choose returns the index of the host for a claim's machine. preferred is taken
// if it has room. Equals are told apart by a hash of claim and host, so that the
// same question has the same answer, and claims differ.
//
// Without room anywhere it is ErrRefused if every host is too small, ErrNoRoom
// if at least one of them answered, and else an error that another try may cure.
func choose(how Placement, claim, preferred string, hosts []candidate) (int, error) {
	order := make([]int, len(hosts))
	for i := range order {
		order[i] = i
	}
	tie := func(c candidate) uint64 {
		sum := fnv.New64a()
		fmt.Fprintf(sum, "%s\x00%s", claim, c.name)
		return sum.Sum64()
	}
	slices.SortFunc(order, func(i, j int) int {
		a, b := hosts[i], hosts[j]
		c := cmp.Compare(a.nodes, b.nodes)
		if how == Pack {
			c = cmp.Compare(b.load(), a.load())
		}
		return cmp.Or(c, cmp.Compare(tie(a), tie(b)), cmp.Compare(a.name, b.name))
	})
	best, never, answered := -1, true, false
	var lacks []string
	for _, i := range order {
		c := hosts[i]
		if c.err != nil {
			never = false
			continue
		}
		answered = true
		never = never && c.never() != ""
		if c.lacks() == "" && (best < 0 || c.name == preferred) {
			best = i
		}
	}
	if best >= 0 {
		return best, nil
	}
	for _, c := range hosts {
		if c.err != nil {
			lacks = append(lacks, fmt.Sprintf("host %s does not answer: %v", c.name, c.err))
			continue
		}
		lacks = append(lacks, "host "+c.name+" "+c.lacks())
	}
	text := strings.Join(lacks, "; ")
	switch {
	case !answered:
		return -1, errors.New(text)
	case never:
		return -1, fmt.Errorf("%w: %s", provider.ErrRefused, text)
	}
	return -1, fmt.Errorf("%w: %s", provider.ErrNoRoom, text)
}

// Place implements provider.Placer. The room that it finds is kept for the
// machine, against other placements of this process.
func (p *Provider) Place(ctx context.Context, s provider.Spec) (string, error) {
	h, err := p.place(ctx, s)
	if err != nil {
		return "", fmt.Errorf("choose a host for machine %s: %w", s.Name, err)
	}
	return h.hostName(ctx)
}

func (p *Provider) place(ctx context.Context, s provider.Spec) (*host, error) {
	hosts := make([]candidate, len(p.hosts))
	shown := make([]map[string]bool, len(p.hosts))
	var wg sync.WaitGroup
	for i, h := range p.hosts {
		wg.Go(func() { hosts[i], shown[i] = h.candidate(ctx, s) })
	}
	wg.Wait()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	p.o.Engines.placing.Lock()
	defer p.o.Engines.placing.Unlock()
	preferred := ""
	for i, h := range p.hosts {
		if s.Host != "" && slices.Contains(h.names(), s.Host) {
			preferred = hosts[i].name
		}
		if hosts[i].err != nil {
			continue
		}
		shown[i][s.Name] = true // its own reservation, of an earlier call
		for _, r := range h.reservations(shown[i]) {
			hosts[i].used.cpuMilli += r.size.cpuMilli
			hosts[i].used.memoryBytes += r.size.memoryBytes
			if p.ofPool(s, r.pool) {
				hosts[i].nodes++
			}
		}
	}
	i, err := choose(p.o.Placement, s.ClaimID, preferred, hosts)
	if err != nil {
		return nil, err
	}
	for j, h := range p.hosts {
		if j != i {
			h.prolong(s.Name, 0)
		}
	}
	p.hosts[i].reserve(s.Name, poolKey{s.Cluster, s.Pool}, hosts[i].need, placeFor)
	return p.hosts[i], nil
}

// ofPool says whether machines of k count as nodes of the pool of s.
func (p *Provider) ofPool(s provider.Spec, k poolKey) bool {
	return k.cluster == s.Cluster && (k.pool == s.Pool || slices.Contains(p.o.FormerPools, k.pool))
}

// candidate asks the engine what its host has and which machines of ours, of all
// clusters and pools, are on it. shown are their names.
func (h *host) candidate(ctx context.Context, s provider.Spec) (c candidate, shown map[string]bool) {
	c = candidate{name: h.label, maxNodes: h.MaxNodes}
	host, err := h.capacity(ctx)
	if err != nil {
		c.err = err
		return c, nil
	}
	c.total = size{int64(host.cpus) * 1000, host.memoryBytes}
	c.need = host.need(h.p.o.Limits, s)
	if h.CPUMilli > 0 {
		c.total.cpuMilli = h.CPUMilli
	}
	if h.MemoryBytes > 0 {
		c.total.memoryBytes = h.MemoryBytes
	}
	// What is larger than the host itself can't be promised, whatever may be taken
	// of it together.
	if _, err := host.reserved(s); err != nil {
		c.total = size{min(c.total.cpuMilli, int64(host.cpus)*1000), min(c.total.memoryBytes, host.memoryBytes)}
	}
	var all []container.Summary
	err = h.call(ctx, "list", h.p.o.CallTimeout, func(ctx context.Context) (err error) {
		all, err = h.api.ContainerList(ctx, container.ListOptions{All: true, Filters: filters.NewArgs(filters.Arg("label", LabelCluster))})
		return err
	})
	if err != nil {
		c.err = err
		return c, nil
	}
	shown = map[string]bool{}
	for _, one := range all {
		if one.State != container.StateCreated && one.State != container.StateRunning && one.State != container.StatePaused && one.State != container.StateRestarting {
			continue // it never runs again
		}
		takes, err := h.sizeOf(ctx, one)
		if err != nil {
			c.err = err
			return c, nil
		}
		shown[nameOf(one.Names)] = true
		c.used.cpuMilli += takes.cpuMilli
		c.used.memoryBytes += takes.memoryBytes
		if h.p.ofPool(s, poolKey{one.Labels[LabelCluster], one.Labels[LabelPool]}) {
			c.nodes++
		}
	}
	return c, shown
}

// sizeOf reads the labels of a machine; for one that was made before there were
// any, the limits of its container.
func (h *host) sizeOf(ctx context.Context, c container.Summary) (size, error) {
	cpu, cpuErr := strconv.ParseInt(c.Labels[LabelCPU], 10, 64)
	memory, memoryErr := strconv.ParseInt(c.Labels[LabelMemory], 10, 64)
	if cpuErr == nil && memoryErr == nil {
		return size{cpu, memory}, nil
	}
	h.mu.Lock()
	s, known := h.sizes[c.ID]
	h.mu.Unlock()
	if known {
		return s, nil
	}
	var full container.InspectResponse
	err := h.call(ctx, "inspect", h.p.o.CallTimeout, func(ctx context.Context) (err error) {
		full, err = h.api.ContainerInspect(ctx, c.ID)
		return err
	})
	switch {
	case absent(err):
		return size{}, nil // gone meanwhile
	case err != nil:
		return size{}, fmt.Errorf("inspect container %.12s: %w", c.ID, err)
	}
	if full.ContainerJSONBase != nil && full.HostConfig != nil {
		s = size{full.HostConfig.NanoCPUs / 1_000_000, full.HostConfig.Memory}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sizes[c.ID] = s
	return s, nil
}

// nameOf is the name of a container, without those under which others link to it.
func nameOf(names []string) string {
	for _, n := range names {
		if n = strings.TrimPrefix(n, "/"); !strings.Contains(n, "/") {
			return n
		}
	}
	return ""
}
