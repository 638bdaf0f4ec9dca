package backtest

import (
	"cmp"
	"maps"
	"slices"
	"time"
)

// Soon is the time within which a node that was added must get a pod, and within which
// a node must not be needed again that was removed.
const Soon = 10 * time.Minute

// Figures are what a policy came to.
type Figures struct {
	NodeHours float64 `json:"node_hours"` // of nodes of our pools, from the claim to the removal
	Cost      float64 `json:"cost"`       // node-hours times the price of the pool
	// PendingSeconds adds up how long each pod waited for a node.
	PendingSeconds float64 `json:"pending_pod_seconds"`
	Additions      int     `json:"additions"` // claims
	Removals       int     `json:"removals"`  // nodes that were drained and removed
	// Flaps counts, pool by pool, the additions less than 10 minutes after the pool was
	// last told to remove a node, and the removals less than 10 minutes after it was last
	// told to add one.
	Flaps     int `json:"flaps"`
	Evictions int `json:"evictions"` // pods that drains moved
	// Unused counts nodes that were added and got no pod within 10 minutes of being Ready.
	Unused int `json:"unused_additions"`
	// Regretted counts nodes that were removed although their pool added one before 10
	// minutes had passed since they were gone.
	Regretted int           `json:"regretted_removals"`
	Pools     []PoolFigures `json:"pools,omitempty"` // by name
}

// PoolFigures are those of one pool.
type PoolFigures struct {
	Pool      string  `json:"pool"`
	NodeHours float64 `json:"node_hours"`
	Price     float64 `json:"price,omitempty"` // of a node, an hour
	Cost      float64 `json:"cost"`
	Additions int     `json:"additions"`
	Removals  int     `json:"removals"`
}

// ledger notes what happens to nodes and pods, whoever tells it.
type ledger struct {
	start     time.Time
	nodes     map[string]*life
	evictions int

	waiting int           // pods that wait
	since   time.Time     // waiting is what it is
	waited  time.Duration // of all pods until then
}

// life is that of one node of ours.
type life struct {
	pool                                 string
	added                                bool // within the range: by a claim of it
	claimed, ready, used, requested, end time.Time
	removed                              bool // it ended because it was told to
}

func newLedger(start time.Time) *ledger {
	return &ledger{start: start, nodes: map[string]*life{}, since: start}
}

// existing notes a node that is there, or on its way, when the range begins.
func (l *ledger) existing(node, pool string) {
	l.nodes[node] = &life{pool: pool, claimed: l.start}
}

func (l *ledger) claimed(node, pool string, at time.Time) {
	if l.nodes[node] == nil { // a claim may be published twice
		l.nodes[node] = &life{pool: pool, added: true, claimed: at}
	}
}

func (l *ledger) ready(node string, at time.Time) {
	if n := l.nodes[node]; n != nil && n.ready.IsZero() {
		n.ready = at
	}
}

// used notes that a pod that is no part of the system is on the node.
func (l *ledger) used(node string, at time.Time) {
	if n := l.nodes[node]; n != nil && n.used.IsZero() {
		n.used = at
	}
}

// requested notes that the node is to be removed, and kept that it is not any more.
func (l *ledger) requested(node string, at time.Time) {
	if n := l.nodes[node]; n != nil && n.requested.IsZero() {
		n.requested = at
	}
}

func (l *ledger) kept(node string) {
	if n := l.nodes[node]; n != nil && n.end.IsZero() {
		n.requested = time.Time{}
	}
}

// ended notes that the node is gone: because it was told to, or by itself.
func (l *ledger) ended(node string, at time.Time) {
	if n := l.nodes[node]; n != nil && n.end.IsZero() {
		n.end, n.removed = at, !n.requested.IsZero()
	}
}

func (l *ledger) evicted(pods int) { l.evictions += pods }

// wait notes how many pods wait from now on.
func (l *ledger) wait(pods int, at time.Time) {
	if at.After(l.since) {
		l.waited += at.Sub(l.since) * time.Duration(l.waiting)
		l.since = at
	}
	l.waiting = pods
}

// figures closes the books.
func (l *ledger) figures(end time.Time, prices map[string]float64) Figures {
	l.wait(l.waiting, end)
	f := Figures{PendingSeconds: l.waited.Seconds(), Evictions: l.evictions}
	hours := map[string]time.Duration{}
	pools := map[string]*PoolFigures{}
	byPool := map[string][]*life{}
	for _, name := range slices.Sorted(maps.Keys(l.nodes)) {
		n := l.nodes[name]
		p := pools[n.pool]
		if p == nil {
			p = &PoolFigures{Pool: n.pool, Price: prices[n.pool]}
			pools[n.pool] = p
		}
		byPool[n.pool] = append(byPool[n.pool], n)
		gone := n.end
		if gone.IsZero() || gone.After(end) {
			gone = end
		}
		hours[n.pool] += max(gone.Sub(n.claimed), 0)
		if n.added {
			p.Additions++
		}
		if n.removed {
			p.Removals++
		}
		if n.unused(end) {
			f.Unused++
		}
	}
	for _, name := range slices.Sorted(maps.Keys(pools)) {
		p := pools[name]
		p.NodeHours = hours[name].Hours()
		p.Cost = p.NodeHours * p.Price
		f.NodeHours, f.Cost = f.NodeHours+p.NodeHours, f.Cost+p.Cost
		f.Additions, f.Removals = f.Additions+p.Additions, f.Removals+p.Removals
		f.Flaps += flaps(byPool[name])
		f.Regretted += regretted(byPool[name])
		f.Pools = append(f.Pools, *p)
	}
	return f
}

// unused reports whether the node was added and had no pod in time. One of which it is
// not known yet is not.
func (n *life) unused(end time.Time) bool {
	if !n.added || n.ready.IsZero() {
		return false
	}
	limit := n.ready.Add(Soon)
	if !n.used.IsZero() {
		return n.used.After(limit)
	}
	return !n.end.IsZero() && !n.end.After(end) || !end.Before(limit)
}

// flaps counts the changes of direction of a pool that follow each other soon.
func flaps(nodes []*life) int {
	type turn struct {
		at time.Time
		up bool
	}
	var turns []turn
	for _, n := range nodes {
		if n.added {
			turns = append(turns, turn{n.claimed, true})
		}
		if n.removed {
			turns = append(turns, turn{n.requested, false})
		}
	}
	slices.SortStableFunc(turns, func(a, b turn) int { return a.at.Compare(b.at) })
	count := 0
	for i := 1; i < len(turns); i++ {
		if turns[i].up != turns[i-1].up && turns[i].at.Sub(turns[i-1].at) < Soon {
			count++
		}
	}
	return count
}

// regretted counts the removals of a pool each of which an addition of its own soon
// makes good.
func regretted(nodes []*life) int {
	var added, removed []*life
	for _, n := range nodes {
		if n.added {
			added = append(added, n)
		}
		if n.removed {
			removed = append(removed, n)
		}
	}
	slices.SortStableFunc(added, func(a, b *life) int { return a.claimed.Compare(b.claimed) })
	slices.SortStableFunc(removed, func(a, b *life) int { return cmp.Or(a.end.Compare(b.end), a.requested.Compare(b.requested)) })
	count := 0
	for _, r := range removed {
		i := slices.IndexFunc(added, func(a *life) bool {
			return a != r && a.claimed.After(r.requested) && a.claimed.Before(r.end.Add(Soon))
		})
		if i >= 0 {
			count++
			added = slices.Delete(added, i, i+1)
		}
	}
	return count
}
