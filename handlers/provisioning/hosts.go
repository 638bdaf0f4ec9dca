package provisioning

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/lifecycle"
)

// Placer is what the Machines of a pool with several hosts implement as well.
type Placer interface {
	// Place chooses a host that has room for the machine. Spec.Host is the host
	// of an earlier attempt that made nothing. ErrNoRoom when none has room now.
	Place(ctx context.Context, s Spec) (host string, err error)
}

// HostsError is what Get and List return when they have not seen everything:
// hosts that are Missing did not answer. Get also returns it, as ErrNotFound,
// when every host answered and none has the machine.
type HostsError struct {
	Answered []string // under every name that a record may bear
	Missing  []string
	Err      error
}

// Error implements error.
func (e *HostsError) Error() string { return e.Err.Error() }

// Unwrap returns what happened.
func (e *HostsError) Unwrap() error { return e.Err }

// errUnknownHost says that nobody can look for a machine, since the pool no
// longer has the host that it was made on.
var errUnknownHost = errors.New("the pool no longer has that host; configure it again, or stop what runs there")

// place has the provider choose a host, and records it before anything is made
// there. Whoever takes the claim over after a lost answer then knows which host
// may have its machine, and waits for that one: a machine on another would be a
// second one. moved says that the claim is no longer ours to go on with.
func (h *Handler) place(ctx context.Context, l *lease, m Machines, s Spec) (host string, moved bool, err error) {
	p, ok := m.(Placer)
	if !ok {
		return "", false, nil
	}
	n := l.Record()
	s.Host = placed(n)
	err = h.effect(l.Context(), "place", h.times.Call, func(ctx context.Context) (err error) {
		host, err = p.Place(ctx, s)
		return err
	})
	if err != nil || host == placed(n) {
		return host, false, err
	}
	moved, err = commit(ctx, l, fmt.Sprintf("placed/%s/%d", n.ClaimID, attempt(n)), func(t *bus.Turn[lifecycle.Node]) error {
		if !isClaimed(*t.State) || t.State.Creation == nil {
			return errMoved
		}
		t.State.Creation.Host = host
		return nil
	})
	if err != nil {
		return "", false, fmt.Errorf("record host: %w: %w", errUnrecorded, err)
	}
	return host, moved, nil
}

// errUnrecorded says that the bus did not take a change, so that there is no
// point in recording another attempt.
var errUnrecorded = errors.New("the record could not be written")

// placed is the host that the record's machine is on, or was going to be made
// on; "" when there are none, or none was chosen yet.
func placed(n lifecycle.Node) string {
	if n.Creation == nil {
		return n.Host
	}
	return cmp.Or(n.Host, n.Creation.Host)
}

// get looks for the record's machine. ErrNotFound is returned only when there is
// none.
func get(ctx context.Context, m Machines, n lifecycle.Node) (Machine, error) {
	found, err := m.Get(ctx, n.Name)
	return found, judge(n, err)
}

// judge says what an error of Get or List means for the machine of a record: it
// is ErrNotFound only if the host that the record names answered without it.
// What is on a host that is down is unknown, never gone.
func judge(n lifecycle.Node, err error) error {
	var hosts *HostsError
	host := placed(n)
	switch {
	case !errors.As(err, &hosts) || host == "":
		return err
	case slices.Contains(hosts.Answered, host):
		return fmt.Errorf("host %s answers and does not have machine %s: %w", host, n.Name, ErrNotFound)
	case len(hosts.Missing) > 0:
		return err
	}
	return fmt.Errorf("machine %s was made on host %s: %w", n.Name, host, errUnknownHost)
}

// gone reports whether the lists say that a record's machine does not exist.
func (v *view) gone(n lifecycle.Node) bool {
	if _, there := v.machines[n.Name]; there || !v.listed[n.Pool] {
		return false
	}
	partial := v.partial[n.Pool]
	return partial == nil || errors.Is(judge(n, partial), ErrNotFound)
}

// letGo says whether a machine that nobody can look for, since the pool no
// longer has its host, may be taken for gone: not while its node is Ready, or an
// agent that runs would be left behind.
func (h *Handler) letGo(ctx context.Context, k bus.Key, n lifecycle.Node, cause error) (detail string, err error) {
	nodes, err := h.nodes(k.Cluster)
	if err != nil {
		return "", err
	}
	object, err := nodes.GetNode(ctx, n.Name)
	switch {
	case err == nil && object.Ready && object.ClaimID == n.ClaimID:
		return "", fmt.Errorf("its node is Ready: %w", cause)
	case err != nil && !errors.Is(err, ErrNotFound):
		return "", fmt.Errorf("read Node object: %w", err)
	}
	return fmt.Sprintf("taken for gone: the pool no longer has host %s, and the node is not Ready", placed(n)), nil
}
