package provisioning

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/lifecycle"
)

// reconcile compares the world with the records, at once and then every
// Times.Sweep.
func (h *Handler) reconcile(ctx context.Context) error {
	s := h.sweeper
	ticker := h.clock.NewTicker(h.times.Sweep)
	defer ticker.Stop()
	for {
		if err := s.sweep(ctx); err != nil && ctx.Err() == nil {
			h.metrics.failed()
			h.log.ErrorContext(ctx, "reconcile sweep incomplete, the rest follows with the next one", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C():
		}
	}
}

// finding is one difference.
type finding struct {
	cluster, node, kind, claim, instance string
}

// sweeper compares and remembers since when a difference has been there. The
// sweep of every minute and one that a person asked for take turns.
type sweeper struct {
	h    *Handler
	turn chan struct{} // holds one while somebody looks

	seen   map[finding]time.Time
	warned map[finding]time.Time // of what is left alone
}

func newSweeper(h *Handler) *sweeper {
	return &sweeper{h: h, turn: make(chan struct{}, 1), seen: map[finding]time.Time{}, warned: map[finding]time.Time{}}
}

// begin waits for the turn to look, and returns what ends it.
func (s *sweeper) begin(ctx context.Context) (end func(), err error) {
	select {
	case s.turn <- struct{}{}:
		return func() { <-s.turn }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// warnEvery is how often the log tells of a machine that is left alone.
const warnEvery = time.Hour

// view is what one sweep sees of one cluster.
type view struct {
	began    time.Time // when its lists were begun
	name     string
	machines map[string]Machine
	listed   map[string]bool        // pools whose machines are in machines
	partial  map[string]*HostsError // those of them with hosts that did not answer
	nodes    map[string]NodeObject
	records  map[string]lifecycle.Node
	log      bus.LogState // says whose machines are ours
}

// sweep publishes each difference that is old enough, and forgets records that
// have long been settled. What can't be read is unknown, never gone.
func (s *sweeper) sweep(ctx context.Context) error {
	end, err := s.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	found, err := s.look(ctx, s.h.clusters())
	errs := []error{err}
	for _, d := range found.settled {
		errs = append(errs, s.h.forget(ctx, d, found.at))
	}
	if found.looked {
		s.h.metrics.differ(found.differences)
	}
	return errors.Join(append(errs, s.publish(ctx, found))...)
}

// publish publishes the differences that are due.
func (s *sweeper) publish(ctx context.Context, found findings) error {
	var errs []error
	for _, d := range found.differences {
		if d.Kind != "" && !d.Due.After(found.at) {
			errs = append(errs, s.h.publishDivergence(ctx, d, found.at))
		}
	}
	return errors.Join(errs...)
}

// findings is what one look found.
type findings struct {
	at             time.Time
	looked         bool         // at the records, and at what could be read besides
	differences    []difference // in the order of cluster, node and kind
	settled        []bus.Key    // records that have been settled for long
	nodes, records int          // compared, by name; and those with a live record
}

// look compares the clusters. With an error the findings are those of what could
// be read.
func (s *sweeper) look(ctx context.Context, clusters map[string]Cluster) (findings, error) {
	h := s.h
	log, err := h.bus.LogState(ctx)
	if err != nil {
		return findings{at: h.clock.Now()}, fmt.Errorf("read the state of the log: %w", err)
	}
	var errs []error
	views := map[string]*view{}
	for _, name := range slices.Sorted(maps.Keys(clusters)) {
		v, err := h.observe(ctx, name, clusters[name])
		if err != nil {
			errs = append(errs, err)
		}
		v.log = log
		views[name] = v
	}
	// The records are read last: a machine or Node object seen before has its
	// record by now.
	records, err := h.state.All(ctx)
	now := h.clock.Now()
	if err != nil {
		return findings{at: now}, errors.Join(append(errs, fmt.Errorf("read records: %w", err))...)
	}
	out := findings{at: now, looked: true}
	for _, r := range records {
		v := views[r.Key.Cluster]
		if r.State.Settled() && now.Sub(r.State.SettledAt()) > h.times.Keep {
			out.settled = append(out.settled, r.Key)
			continue
		}
		if v != nil && r.State.Phase != "" {
			v.records[r.Key.Name] = r.State
		}
	}
	for _, name := range slices.Sorted(maps.Keys(views)) {
		v := views[name]
		out.differences = append(out.differences, s.compare(v, now)...)
		out.count(v)
	}
	s.remember(&out, views)
	return out, errors.Join(errs...)
}

// count adds what was compared in one cluster.
func (f *findings) count(v *view) {
	names := map[string]bool{}
	for n := range v.machines {
		names[n] = true
	}
	for n := range v.nodes {
		names[n] = true
	}
	for n, r := range v.records {
		if !r.Settled() {
			names[n] = true
			f.records++
		}
	}
	f.nodes += len(names)
}

// remember sets since when each difference has been there and when it is due, and
// forgets those that are gone from the clusters that were looked at.
func (s *sweeper) remember(f *findings, looked map[string]*view) {
	still := map[finding]bool{}
	for i := range f.differences {
		d := &f.differences[i]
		since, ok := s.seen[d.finding()]
		if !ok {
			since = f.at
			s.seen[d.finding()] = since
		}
		d.Since = since
		if d.Kind != "" {
			d.Due = since.Add(s.h.grace(*d))
		}
		still[d.finding()] = true
	}
	maps.DeleteFunc(s.seen, func(x finding, _ time.Time) bool { return looked[x.cluster] != nil && !still[x] })
}

// grace is how long a difference must have been there. A machine or Node object
// that is gone is checked at once; what is there too much, or may come back,
// may be between two steps.
func (h *Handler) grace(p difference) time.Duration {
	if p.Kind == events.DivergedNodeLost && p.Instance == "" {
		return 0
	}
	return h.times.Grace
}

// observe lists the machines and Node objects of a cluster. A node list that
// can't be had leaves nodes nil.
func (h *Handler) observe(ctx context.Context, name string, c Cluster) (*view, error) {
	v := &view{name: name, began: h.clock.Now(), machines: map[string]Machine{}, listed: map[string]bool{},
		partial: map[string]*HostsError{}, records: map[string]lifecycle.Node{}}
	var errs []error
	for _, pool := range slices.Sorted(maps.Keys(c.Pools)) {
		var machines []Machine
		err := h.effect(ctx, "list", h.times.Call, func(ctx context.Context) (err error) {
			machines, err = c.Pools[pool].List(ctx)
			return err
		})
		if err != nil {
			errs = append(errs, fmt.Errorf("list machines of pool %s of cluster %s: %w", pool, name, err))
			var partial *HostsError
			if !errors.As(err, &partial) {
				continue
			}
			v.partial[pool] = partial
		}
		v.listed[pool] = true
		for _, m := range machines {
			if m.Cluster == "" || m.Cluster == name {
				v.machines[m.Name] = m
			}
		}
	}
	if c.Nodes == nil {
		return v, errors.Join(errs...)
	}
	var nodes []NodeObject
	err := h.effect(ctx, "list", h.times.Call, func(ctx context.Context) (err error) {
		nodes, err = c.Nodes.ListNodes(ctx)
		return err
	})
	if err != nil {
		errs = append(errs, fmt.Errorf("list nodes of cluster %s: %w", name, err))
		return v, errors.Join(errs...)
	}
	v.nodes = make(map[string]NodeObject, len(nodes))
	for _, n := range nodes {
		if n.ClaimID != "" {
			v.nodes[n.Name] = n
		}
	}
	return v, errors.Join(errs...)
}

// compare finds the differences in one cluster, in the order of names and kinds.
func (s *sweeper) compare(v *view, now time.Time) []difference {
	var found []difference
	report := func(d difference) {
		d.cluster = v.name
		found = append(found, d)
	}
	for name, m := range v.machines {
		n, known := v.records[name]
		if m.ClaimID == "" || known && !n.Settled() {
			continue // not from a claim, or somebody's business
		}
		if known && !owns(bus.Key{Cluster: v.name, Name: name}, n, m) {
			continue // another claim's machine under this name is never touched
		}
		d := difference{Node: name, Instance: m.ID, ClaimID: m.ClaimID, Pool: m.Pool,
			Detail: fmt.Sprintf("machine %.12s is %s, and %s", m.ID, m.State, recordState(n, known))}
		switch why := v.leave(m, known); {
		case why != "":
			d.why = why
			s.warn(v, m, now, why)
		case known || !v.nodes[name].Ready:
			d.Kind = events.DivergedOrphanInstance
		default:
			d.Kind, d.machine = events.DivergedUnrecorded, foundMachine(m, v.nodes[name])
		}
		report(d)
	}
	for name, object := range v.nodes {
		n, known := v.records[name]
		_, hasMachine := v.machines[name]
		if hasMachine || known && !n.Settled() {
			continue
		}
		d := difference{Node: name, Kind: events.DivergedOrphanNode, ClaimID: object.ClaimID, Pool: object.Pool,
			Detail: "the Node object has no machine, and " + recordState(n, known)}
		switch {
		case v.partial[object.Pool] != nil:
			d.Kind, d.why = "", fmt.Sprintf("its machine may be on a host that does not answer: %v", v.partial[object.Pool])
		case !v.listed[object.Pool]:
			d.Kind, d.why = "", "the machines of its pool are not known: the pool is not configured here, or its provider does not answer"
		case object.Ready && !known:
			d.Kind, d.why = "", "it is Ready, so its machine is where this configuration does not look; drain it and delete the Node object by hand"
		}
		report(d)
	}
	for name, n := range v.records {
		if d, ok := s.h.compareRecord(v, name, n, now); ok {
			report(d)
		}
	}
	slices.SortFunc(found, func(a, b difference) int {
		return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.ClaimID, b.ClaimID))
	})
	return found
}

// leave says why a machine without a live record is left alone; empty: it is not.
func (v *view) leave(m Machine, known bool) string {
	object, hasNode := v.nodes[m.Name]
	_, ours := v.log.Continues(m.Epoch)
	switch {
	case !v.listed[m.Pool]:
		return "its pool is not configured here; configure it again or remove the machine by hand"
	case known:
		return ""
	case m.Epoch != "" && !ours:
		return "it belongs to another log; remove it by hand when the autoscaler of that log is gone, or let this log take its place with 'k3s-autoscaler bus rebase'"
	case v.nodes == nil:
		return "its node may be Ready, and the API server does not say"
	case hasNode && object.Ready && object.ClaimID != m.ClaimID:
		return "the Node object of its name carries another claim; find out who made which, and remove the wrong one by hand"
	case hasNode && object.Ready && m.State != MachineRunning:
		return "its node is still Ready though the machine does not run; it is looked at again"
	}
	return ""
}

// warn tells the log of a machine without a live record that is left alone.
func (s *sweeper) warn(v *view, m Machine, now time.Time, why string) {
	f := finding{cluster: v.name, node: m.Name, claim: m.ClaimID, instance: m.ID, kind: why}
	if last, ok := s.warned[f]; ok && now.Sub(last) < warnEvery {
		return
	}
	s.warned[f] = now
	s.h.log.Warn("machine without a live record left alone", "cluster", v.name, "node", m.Name, "pool", m.Pool,
		"claim", m.ClaimID, "epoch", m.Epoch, "why", why)
}

func recordState(n lifecycle.Node, known bool) string {
	if !known {
		return "there is no record of it"
	}
	return "its record says " + string(n.Phase)
}

// compareRecord finds what is wrong with a record.
func (h *Handler) compareRecord(v *view, name string, n lifecycle.Node, now time.Time) (difference, bool) {
	p := difference{Node: name, ClaimID: n.ClaimID, Pool: n.Pool, Kind: events.DivergedNodeLost, correlation: n.CorrelationID}
	// One that became Ready while the lists were read is not missing in them: its
	// machine may be younger than they are.
	if (n.Phase == lifecycle.Ready || n.Phase == lifecycle.Unready) && n.Since.Before(v.began) {
		m, hasMachine := v.machines[name]
		_, hasNode := v.nodes[name]
		switch {
		case v.gone(n):
			p.Detail = "its machine is gone"
			return p, true
		case v.nodes != nil && !hasNode:
			p.Detail = "its Node object is gone"
			return p, true
		case hasMachine && m.State == MachineExited:
			p.Detail = fmt.Sprintf("its machine ended with exit code %d", m.ExitCode)
			p.Instance = m.ID
			return p, true
		}
	}
	if !n.Deadline.IsZero() && now.Sub(n.Deadline) > h.times.Grace {
		p.Kind = events.DivergedStuck
		p.Detail = fmt.Sprintf("%s since %s, past its deadline %s", n.Phase, n.Since.UTC().Format(time.RFC3339), n.Deadline.UTC().Format(time.RFC3339))
		return p, true
	}
	return p, false
}

// reportEvery is how often a difference that lasts is published, by however many
// processes. What a check dismissed may be there when the next one looks: a node
// stays Ready for a while after its machine ended.
const reportEvery = time.Minute

// publishDivergence publishes a difference.
func (h *Handler) publishDivergence(ctx context.Context, d difference, now time.Time) error {
	f := d.finding()
	window := strconv.FormatInt(now.Truncate(min(reportEvery, h.times.Sweep)).UnixMilli(), 10)
	err := h.publish(ctx, events.Meta{Cluster: d.cluster, Node: d.Node, CorrelationID: d.correlation, Time: now,
		ID: events.ID("diverged", f.cluster, f.node, f.kind, f.claim, f.instance, window)},
		events.NodeDiverged{Node: d.Node, Kind: d.Kind, Detail: d.Detail, Instance: d.Instance, ClaimID: d.ClaimID, Pool: d.Pool, At: now, Machine: d.machine})
	if err == nil {
		h.log.WarnContext(ctx, "node diverged", "cluster", d.cluster, "node", d.Node, "kind", d.Kind, "detail", d.Detail, "claim", d.ClaimID)
	}
	return err
}

func (h *Handler) publish(ctx context.Context, m events.Meta, p events.Payload) error {
	m.Publisher = events.HandlerProvisioning
	e, err := events.New(m, p)
	if err != nil {
		return err
	}
	if err := h.bus.Publish(ctx, e); err != nil {
		return fmt.Errorf("publish %s of node %s: %w", p.EventType(), m.Node, err)
	}
	return nil
}

// forget deletes the record of a node that has been gone for long.
func (h *Handler) forget(ctx context.Context, k bus.Key, now time.Time) error {
	err := h.state.Amend(ctx, k, "forget", func(t *bus.Turn[lifecycle.Node]) error {
		if !t.Exists || !t.State.Settled() || now.Sub(t.State.SettledAt()) <= h.times.Keep {
			t.Unchanged()
			return nil
		}
		t.Delete()
		return nil
	})
	if err != nil {
		return fmt.Errorf("forget record of node %s: %w", k, err)
	}
	return nil
}
