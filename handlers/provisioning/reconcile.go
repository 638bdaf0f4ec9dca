package provisioning

import (
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
	s := newSweeper(h)
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

// sweeper compares and remembers since when a difference has been there.
type sweeper struct {
	h      *Handler
	seen   map[finding]time.Time
	warned map[finding]time.Time // of what is left alone
}

func newSweeper(h *Handler) *sweeper {
	return &sweeper{h: h, seen: map[finding]time.Time{}, warned: map[finding]time.Time{}}
}

// warnEvery is how often the log tells of a machine that is left alone.
const warnEvery = time.Hour

// view is what one sweep sees of one cluster.
type view struct {
	began    time.Time // when its lists were begun
	name     string
	machines map[string]Machine
	listed   map[string]bool // pools whose machines are all in machines
	nodes    map[string]NodeObject
	records  map[string]lifecycle.Node
}

// sweep publishes each difference that is old enough, and forgets records that
// have long been settled. What can't be read is unknown, never gone.
func (s *sweeper) sweep(ctx context.Context) error {
	h := s.h
	clusters := h.clusters()
	var errs []error
	views := map[string]*view{}
	for _, name := range slices.Sorted(maps.Keys(clusters)) {
		v, err := h.observe(ctx, name, clusters[name])
		if err != nil {
			errs = append(errs, err)
		}
		views[name] = v
	}
	// The records are read last: a machine or Node object seen before has its
	// record by now.
	records, err := h.state.All(ctx)
	if err != nil {
		return errors.Join(append(errs, fmt.Errorf("read records: %w", err))...)
	}
	now := h.clock.Now()
	for _, r := range records {
		if r.State.Settled() && now.Sub(r.State.SettledAt()) > h.times.Keep {
			errs = append(errs, h.forget(ctx, r.Key, now))
			continue
		}
		if v := views[r.Key.Cluster]; v != nil && r.State.Phase != "" {
			v.records[r.Key.Name] = r.State
		}
	}
	found := map[finding]events.NodeDiverged{}
	for _, v := range views {
		s.compare(v, now, found)
	}
	maps.DeleteFunc(s.seen, func(f finding, _ time.Time) bool { _, still := found[f]; return !still })
	for f, p := range found {
		since, ok := s.seen[f]
		if !ok {
			since = now
			s.seen[f] = now
		}
		if wait := h.grace(p); now.Sub(since) >= wait {
			errs = append(errs, h.publishDivergence(ctx, f, p, views[f.cluster].records[f.node].CorrelationID, now))
		}
	}
	return errors.Join(errs...)
}

// grace is how long a difference must have been there. A machine or Node object
// that is gone is checked at once; what is there too much, or may come back,
// may be between two steps.
func (h *Handler) grace(p events.NodeDiverged) time.Duration {
	if p.Kind == events.DivergedNodeLost && p.Instance == "" {
		return 0
	}
	return h.times.Grace
}

// observe lists the machines and Node objects of a cluster. A node list that
// can't be had leaves nodes nil.
func (h *Handler) observe(ctx context.Context, name string, c Cluster) (*view, error) {
	v := &view{name: name, began: h.clock.Now(), machines: map[string]Machine{}, listed: map[string]bool{}, records: map[string]lifecycle.Node{}}
	var errs []error
	for _, pool := range slices.Sorted(maps.Keys(c.Pools)) {
		var machines []Machine
		err := h.effect(ctx, "list", h.times.Call, func(ctx context.Context) (err error) {
			machines, err = c.Pools[pool].List(ctx)
			return err
		})
		if err != nil {
			errs = append(errs, fmt.Errorf("list machines of pool %s of cluster %s: %w", pool, name, err))
			continue
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

// compare finds the differences in one cluster.
func (s *sweeper) compare(v *view, now time.Time, found map[finding]events.NodeDiverged) {
	report := func(p events.NodeDiverged) {
		p.At = now
		found[finding{v.name, p.Node, p.Kind, p.ClaimID, p.Instance}] = p
	}
	for name, m := range v.machines {
		n, known := v.records[name]
		object, hasNode := v.nodes[name]
		switch {
		case m.ClaimID == "" || known && !n.Settled():
			// Not from a claim, or somebody's business.
		case known && !owns(bus.Key{Cluster: v.name, Name: name}, n, m):
			// Another claim's machine under this name is never touched.
		case !v.listed[m.Pool]:
			s.leave(v, m, now, "its pool is not configured here; configure it again or remove the machine by hand")
		case !known && m.Epoch != "" && m.Epoch != s.h.bus.Incarnation():
			s.leave(v, m, now, "it belongs to another log; remove it by hand when the autoscaler of that log is gone")
		case !known && (v.nodes == nil || hasNode && object.Ready):
			s.leave(v, m, now, "its node is or may be Ready; drain and remove it, or restore the log that it was recorded in")
		default:
			report(events.NodeDiverged{Node: name, Kind: events.DivergedOrphanInstance, Instance: m.ID, ClaimID: m.ClaimID, Pool: m.Pool,
				Detail: fmt.Sprintf("machine %s is %s, and %s", m.ID, m.State, recordState(n, known))})
		}
	}
	for name, object := range v.nodes {
		n, known := v.records[name]
		_, hasMachine := v.machines[name]
		if hasMachine || known && !n.Settled() || !v.listed[object.Pool] || object.Ready && !known {
			continue
		}
		report(events.NodeDiverged{Node: name, Kind: events.DivergedOrphanNode, ClaimID: object.ClaimID, Pool: object.Pool,
			Detail: "the Node object has no machine, and " + recordState(n, known)})
	}
	for name, n := range v.records {
		if p, ok := s.h.compareRecord(v, name, n, now); ok {
			report(p)
		}
	}
}

// leave tells the log of a machine without a live record that is not removed.
func (s *sweeper) leave(v *view, m Machine, now time.Time, why string) {
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
func (h *Handler) compareRecord(v *view, name string, n lifecycle.Node, now time.Time) (events.NodeDiverged, bool) {
	p := events.NodeDiverged{Node: name, ClaimID: n.ClaimID, Pool: n.Pool, Kind: events.DivergedNodeLost}
	// One that became Ready while the lists were read is not missing in them: its
	// machine may be younger than they are.
	if (n.Phase == lifecycle.Ready || n.Phase == lifecycle.Unready) && n.Since.Before(v.began) {
		m, hasMachine := v.machines[name]
		_, hasNode := v.nodes[name]
		switch {
		case v.listed[n.Pool] && !hasMachine:
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

// publishDivergence publishes a difference. As long as it lasts it is published
// once in five minutes, by however many processes.
func (h *Handler) publishDivergence(ctx context.Context, f finding, p events.NodeDiverged, correlation string, now time.Time) error {
	window := strconv.FormatInt(now.Truncate(5*time.Minute).Unix(), 10)
	err := h.publish(ctx, events.Meta{Cluster: f.cluster, Node: p.Node, CorrelationID: correlation, Time: now,
		ID: events.ID("diverged", f.cluster, f.node, f.kind, f.claim, f.instance, window)}, p)
	if err == nil {
		h.log.WarnContext(ctx, "node diverged", "cluster", f.cluster, "node", p.Node, "kind", p.Kind, "detail", p.Detail, "claim", p.ClaimID)
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

// watch looks at the machines that have yet to become Ready, and publishes
// node.observed when one ended or vanished: the deadline need not be waited for.
func (h *Handler) watch(ctx context.Context) error {
	ticker := h.clock.NewTicker(h.times.Watch)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C():
		}
		if err := h.watchOnce(ctx); err != nil && ctx.Err() == nil {
			h.metrics.failed()
			h.log.ErrorContext(ctx, "machines can't be watched, trying again", "error", err)
		}
	}
}

func (h *Handler) watchOnce(ctx context.Context) error {
	records, err := h.state.All(ctx)
	if err != nil {
		return fmt.Errorf("read records: %w", err)
	}
	var errs []error
	for _, r := range records {
		n := r.State
		if !n.Phase.Waiting() || n.Suspicion != nil {
			continue
		}
		m, err := h.machines(r.Key.Cluster, n.Pool)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		var found Machine
		err = h.effect(ctx, "inspect", h.times.Call, func(ctx context.Context) (err error) {
			found, err = m.Get(ctx, n.Name)
			return err
		})
		p := events.NodeObserved{Node: n.Name, What: events.ObservedExited, At: h.clock.Now()}
		switch {
		case errors.Is(err, ErrNotFound):
			p.Reason, p.Message = ReasonMachineGone, "the machine is gone"
		case err != nil:
			errs = append(errs, fmt.Errorf("inspect machine %s: %w", n.Name, err))
			continue
		case found.State != MachineExited:
			continue
		default:
			p.Reason, p.Message = ReasonMachineExited, fmt.Sprintf("the machine ended with exit code %d", found.ExitCode)
		}
		// Once in a minute, should the report be dismissed.
		window := strconv.FormatInt(p.At.Truncate(time.Minute).Unix(), 10)
		errs = append(errs, h.publish(ctx, events.Meta{Cluster: r.Key.Cluster, Node: n.Name, CorrelationID: n.CorrelationID, Time: p.At,
			ID: events.ID("exited", r.Key.Cluster, n.Name, n.ClaimID, window)}, p))
	}
	return errors.Join(errs...)
}
