package externalgrpc

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/provider/externalgrpc/protos"
)

// lookFor is how long what was seen of the group serves those who only look:
// many claims may wait at a time.
const lookFor = time.Second

// errBusy says that another process changes the group just now.
var errBusy = errors.New("another process changes the size of the node group; trying again")

func (p *Provider) key() string { return p.o.Cluster + "." + p.o.NodeGroup }

// load reads the ledger.
func (p *Provider) load(ctx context.Context) (*ledger, uint64, error) {
	raw, rev, err := p.o.Store.Load(ctx, p.key())
	if err != nil {
		return nil, 0, fmt.Errorf("read the ledger of node group %s: %w", p.o.NodeGroup, err)
	}
	l := &ledger{}
	if len(raw) > 0 {
		if err := json.Unmarshal(raw, l); err != nil {
			return nil, 0, fmt.Errorf("read the ledger of node group %s: %w", p.o.NodeGroup, err)
		}
	}
	return l, rev, nil
}

// update changes the ledger by compare-and-swap: fn may run several times, and
// says whether there is anything to write.
func (p *Provider) update(ctx context.Context, fn func(l *ledger) (changed bool, err error)) error {
	for {
		l, rev, err := p.load(ctx)
		if err != nil {
			return err
		}
		changed, err := fn(l)
		if err != nil || !changed {
			return err
		}
		raw, err := json.Marshal(l)
		if err != nil {
			return fmt.Errorf("write the ledger of node group %s: %w", p.o.NodeGroup, err)
		}
		err = p.o.Store.Save(ctx, p.key(), raw, rev)
		if errors.Is(err, ErrConflict) {
			continue
		}
		if err != nil {
			return fmt.Errorf("write the ledger of node group %s: %w", p.o.NodeGroup, err)
		}
		return nil
	}
}

// call makes one call with its deadline.
func (p *Provider) call(ctx context.Context, what string, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, p.o.Timeout)
	defer cancel()
	if err := f(ctx); err != nil {
		return &callError{what: what, address: p.o.Address, group: p.o.NodeGroup, pool: p.o.Pool, err: err}
	}
	return nil
}

// look sees the group as it is now.
func (p *Provider) look(ctx context.Context) (*sight, error) {
	l, _, err := p.load(ctx)
	if err != nil {
		return nil, err
	}
	s := &sight{version: l.Version}
	// Providers may answer from what they learned at the last refresh.
	if err := p.call(ctx, "refresh", func(ctx context.Context) error {
		_, err := p.client.Refresh(ctx, &protos.RefreshRequest{})
		return err
	}); err != nil {
		return nil, err
	}
	if err := p.call(ctx, "read the target size", func(ctx context.Context) error {
		r, err := p.client.NodeGroupTargetSize(ctx, &protos.NodeGroupTargetSizeRequest{Id: p.o.NodeGroup})
		s.target = r.GetTargetSize()
		return err
	}); err != nil {
		return nil, err
	}
	var got *protos.NodeGroupNodesResponse
	if err := p.call(ctx, "list the instances", func(ctx context.Context) (err error) {
		got, err = p.client.NodeGroupNodes(ctx, &protos.NodeGroupNodesRequest{Id: p.o.NodeGroup})
		return err
	}); err != nil {
		return nil, err
	}
	for _, in := range got.GetInstances() {
		if in.GetId() == "" {
			continue // nothing could be said to it
		}
		s.instances = append(s.instances, instance{
			id:       in.GetId(),
			deleting: in.GetStatus().GetInstanceState() == protos.InstanceStatus_instanceDeleting,
			failure:  failure(in.GetStatus().GetErrorInfo()),
		})
	}
	slices.SortFunc(s.instances, func(a, b instance) int { return cmp.Compare(a.id, b.id) })
	return s, nil
}

// failure is what the provider says went wrong with an instance.
func failure(e *protos.InstanceErrorInfo) string {
	if e.GetErrorCode() == "" {
		return ""
	}
	out := e.GetErrorCode()
	if e.GetInstanceErrorClass() == classOutOfResources {
		out += " (out of resources)"
	}
	if m := strings.TrimSpace(e.GetErrorMessage()); m != "" {
		out += ": " + m
	}
	return out
}

// classOutOfResources is cloudprovider.OutOfResourcesErrorClass of the Cluster
// Autoscaler, which the protocol carries as a number.
const classOutOfResources = 1

// glance is look for those who only want to know: what was seen within the last
// second serves as well.
func (p *Provider) glance(ctx context.Context) (*sight, error) {
	p.looking.Lock()
	defer p.looking.Unlock()
	if p.seen != nil && p.o.Clock.Since(p.seenAt) < lookFor {
		return p.seen, nil
	}
	s, err := p.look(ctx)
	if err != nil {
		return nil, err
	}
	p.seen, p.seenAt = s, p.o.Clock.Now()
	return s, nil
}

// settled returns the ledger after a glance at the group.
func (p *Provider) settled(ctx context.Context) (*ledger, *sight, error) {
	var out *ledger
	s, err := p.change(ctx, p.glance, func(l *ledger, _ *sight) (bool, error) {
		out = l
		return false, nil
	})
	return out, s, err
}

// looksAgain bounds how often what was seen may be out of date when it is to be
// used.
const looksAgain = 5

// change looks at the group, settles the ledger, and lets fn change it further;
// fn may run several times, and says whether there is anything to write.
func (p *Provider) change(ctx context.Context, look func(context.Context) (*sight, error), fn func(*ledger, *sight) (bool, error)) (*sight, error) {
	for range looksAgain {
		s, err := look(ctx)
		if err != nil {
			return nil, err
		}
		stale, settled := false, false
		err = p.update(ctx, func(l *ledger) (bool, error) {
			if stale = s.version != l.Version; stale {
				return false, nil
			}
			settled = l.settle(s, p.o.Clock.Now().UTC())
			changed, err := fn(l, s)
			return changed || settled, err
		})
		if err != nil || !stale {
			if settled {
				p.forget()
			}
			return s, err
		}
		p.forget()
	}
	return nil, errBusy
}

// forget makes the next glance a look.
func (p *Provider) forget() {
	p.looking.Lock()
	defer p.looking.Unlock()
	p.seen = nil
}

// batch is claims whose instances are asked for by one call.
type batch struct {
	names []string
	done  chan struct{}
	errs  map[string]error
}

// raise asks for the instance of a claim, together with whoever else comes
// while another call is under way: a provider may take its time for each.
func (p *Provider) raise(ctx context.Context, name string) error {
	p.mu.Lock()
	b := p.next
	if b == nil {
		b = &batch{done: make(chan struct{})}
		p.next = b
		// The call is for all of them, whoever gives up.
		go p.run(context.WithoutCancel(ctx), b)
	}
	b.names = append(b.names, name)
	p.mu.Unlock()
	select {
	case <-b.done:
		return b.errs[name]
	case <-ctx.Done():
		return fmt.Errorf("wait for the node group to grow: %w", ctx.Err())
	}
}

func (p *Provider) run(ctx context.Context, b *batch) {
	p.changing.Lock()
	defer p.changing.Unlock()
	p.mu.Lock()
	p.next = nil // whoever comes now is in the next one
	p.mu.Unlock()
	b.errs = p.increase(ctx, b.names)
	close(b.done)
}

// increase raises the target size by one for each claim that nothing was asked
// for yet. p.changing is held.
func (p *Provider) increase(ctx context.Context, names []string) map[string]error {
	all := func(err error) map[string]error {
		out := map[string]error{}
		for _, n := range names {
			out[n] = err
		}
		return out
	}
	limit, err := p.maxSize(ctx)
	if err != nil {
		return all(err)
	}
	errs := map[string]error{}
	var asked []string
	s, err := p.change(ctx, p.look, func(l *ledger, s *sight) (bool, error) {
		now := p.o.Clock.Now().UTC()
		asked, errs = nil, map[string]error{}
		if now.Before(l.Busy) {
			return false, errBusy
		}
		var claims []*claim
		for _, name := range names {
			c := l.find(name)
			switch {
			case c == nil || !c.StoppedAt.IsZero() || c.Stage != stageCreated || slices.Contains(asked, name):
				continue // it went, or it was asked for already
			case limit > 0 && s.target+int32(len(claims)) >= limit: //nolint:gosec // at most the length of a list
				errs[name] = p.full(name, limit)
				continue
			}
			claims, asked = append(claims, c), append(asked, c.Name)
		}
		if len(claims) == 0 {
			return false, nil
		}
		l.ask(s, claims, now, now.Add(p.o.Timeout+busyMargin))
		return true, nil
	})
	if err != nil {
		return all(err)
	}
	if len(asked) == 0 {
		return errs
	}
	callErr := p.call(ctx, fmt.Sprintf("increase the size by %d", len(asked)), func(ctx context.Context) error {
		_, err := p.client.NodeGroupIncreaseSize(ctx, &protos.NodeGroupIncreaseSizeRequest{
			Id: p.o.NodeGroup, Delta: int32(len(asked))}) //nolint:gosec // at most the length of a list
		return err
	})
	failed, err := p.conclude(ctx, s.target, asked, callErr)
	if err != nil {
		// They stay in doubt until the target can be read, and count as started.
		p.o.Logger.Error("what became of a larger node group could not be written down; its target size is compared later",
			"address", p.o.Address, "node_group", p.o.NodeGroup, "pool", p.o.Pool, "error", err)
	}
	for _, name := range failed {
		errs[name] = callErr
	}
	return errs
}

// busyMargin is how much longer than a call another process waits before it
// takes the caller to be dead.
const busyMargin = 5 * time.Second

// conclude writes down what became of a call that asked for instances, and
// returns the claims for which it certainly was not carried out.
func (p *Provider) conclude(ctx context.Context, before int32, asked []string, callErr error) (failed []string, err error) {
	carried, certain := len(asked), true
	if callErr != nil {
		p.o.Logger.Warn("node group was not enlarged, or its reply was lost; comparing its target size",
			"address", p.o.Address, "node_group", p.o.NodeGroup, "pool", p.o.Pool, "before", before, "asked", len(asked), "error", callErr)
		after, lookErr := p.look(ctx)
		switch {
		case lookErr != nil:
			carried, certain = 0, false
		default:
			carried = max(0, min(len(asked), int(after.target-before)))
			certain = answered(callErr)
		}
	}
	err = p.update(ctx, func(l *ledger) (bool, error) {
		failed = nil
		l.asked(asked, carried, certain)
		for _, name := range asked {
			if c := l.find(name); c != nil && c.Stage == stageCreated {
				failed = append(failed, name)
			}
		}
		return true, nil
	})
	return failed, err
}

// orderAgain is how long an instance may take to show that it is being deleted
// before that is asked for again.
const orderAgain = 2 * time.Minute

// order has the instance of a claim deleted, or its place in the target size
// given up if none has come.
func (p *Provider) order(ctx context.Context, name string) error {
	p.changing.Lock()
	defer p.changing.Unlock()
	var c claim
	var idle bool
	s, err := p.change(ctx, p.look, func(l *ledger, s *sight) (bool, error) {
		now := p.o.Clock.Now().UTC()
		c, idle = claim{}, true
		found := l.find(name)
		switch {
		case found == nil, found.Stage == stageCreated:
			return false, nil
		case now.Before(l.Busy):
			return false, errBusy
		}
		if found.StoppedAt.IsZero() {
			found.StoppedAt = now
		}
		in, there := s.find(found.Instance)
		if found.Stage == stageBound && !there && found.OrderedAt.IsZero() && l.replaced(s) {
			found.Stage, found.Instance = stageAsked, ""
			l.settle(s, now) // it may be there
			found = l.find(name)
			in, there = s.find(found.Instance)
		}
		c = *found
		switch c.Stage {
		case stageBound:
			idle = !there || in.deleting || now.Sub(c.OrderedAt) < orderAgain
		case stageAsked:
			idle = c.Withdrawn
		case stageCreated, stageDoubtful:
		}
		if !idle {
			if c.Stage == stageBound {
				found.OrderedAt = now
			}
			l.Version++
			l.Busy = now.Add(p.o.Timeout + busyMargin)
		}
		return true, nil
	})
	if err != nil || idle {
		return err
	}
	var callErr error
	if c.Stage == stageBound {
		callErr = p.deleteInstance(ctx, c)
	} else {
		callErr = p.call(ctx, "decrease the target size by 1", func(ctx context.Context) error {
			_, err := p.client.NodeGroupDecreaseTargetSize(ctx, &protos.NodeGroupDecreaseTargetSizeRequest{Id: p.o.NodeGroup, Delta: -1})
			return err
		})
	}
	target := s.target
	if callErr != nil {
		after, err := p.look(ctx)
		if err == nil {
			target = after.target
		}
	} else {
		target--
	}
	err = p.update(ctx, func(l *ledger) (bool, error) {
		l.Busy, l.Target = time.Time{}, target
		l.Version++
		found := l.find(name)
		switch {
		case found == nil:
		case c.Stage == stageAsked && target < s.target:
			found.Withdrawn = true
		case c.Stage == stageBound && callErr != nil:
			found.OrderedAt = time.Time{}
		}
		return true, nil
	})
	if callErr != nil && c.Stage == stageAsked && (target < s.target || answered(callErr)) {
		// Either it was carried out, or the provider can't take its word back: then
		// the instance that comes is deleted.
		p.o.Logger.Warn("a node that did not come was not cancelled; its instance is deleted when it comes",
			"address", p.o.Address, "node_group", p.o.NodeGroup, "pool", p.o.Pool, "node", name, "error", callErr)
		callErr = nil
	}
	return errors.Join(callErr, err)
}

func (p *Provider) deleteInstance(ctx context.Context, c claim) error {
	return p.call(ctx, "delete instance "+c.Instance, func(ctx context.Context) error {
		// The Cluster Autoscaler names a node that never registered by its instance.
		_, err := p.client.NodeGroupDeleteNodes(ctx, &protos.NodeGroupDeleteNodesRequest{Id: p.o.NodeGroup,
			Nodes: []*protos.ExternalGrpcNode{{ProviderID: c.Instance, Name: cmp.Or(c.Node, c.Instance)}}})
		return err
	})
}
