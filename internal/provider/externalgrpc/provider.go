package externalgrpc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/provider"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/provider/externalgrpc/protos"
)

// doubtFor is how long a call whose reply was lost may take to show in the
// target size before its claim counts as failed.
const doubtFor = 30 * time.Second

// Provider creates the nodes of one pool in one node group. It is safe for
// concurrent use, and so are several of them in several processes with one Store.
type Provider struct {
	o      Options
	conn   *grpc.ClientConn
	client protos.CloudProviderClient

	changing sync.Mutex // held while the group is changed

	mu     sync.Mutex
	next   *batch // collects claims until it is their turn
	fits   bool   // the group's template is what the pool says
	fitsOf provider.Spec

	looking sync.Mutex // held while somebody looks, so that the others need not
	seen    *sight
	seenAt  time.Time
}

var (
	_ provider.NodeProvider = (*Provider)(nil)
	_ provider.Namer        = (*Provider)(nil)
)

// New returns a Provider. It makes no call.
func New(o Options) (*Provider, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("externalgrpc provider: %w", err)
	}
	conn, err := dial(o)
	if err != nil {
		return nil, fmt.Errorf("externalgrpc provider %s: %w", o.Address, err)
	}
	return &Provider{o: o, conn: conn, client: protos.NewCloudProviderClient(conn)}, nil
}

// Close ends the connection. The provider itself is not told to clean up, as the
// Cluster Autoscaler does at its end: others may be using it.
func (p *Provider) Close() error { return p.conn.Close() }

// Create implements provider.NodeProvider: it writes the claim down.
func (p *Provider) Create(ctx context.Context, s provider.Spec) (provider.Machine, error) {
	fail := func(err error) (provider.Machine, error) {
		return provider.Machine{}, fmt.Errorf("create node %s: %w", s.Name, err)
	}
	if err := s.Validate(); err != nil {
		return fail(err)
	}
	if s.Cluster != p.o.Cluster {
		return fail(fmt.Errorf("%w: it is for cluster %s, this provider is for %s", provider.ErrRefused, s.Cluster, p.o.Cluster))
	}
	if err := p.fit(ctx, s); err != nil {
		return fail(err)
	}
	var made claim
	err := p.update(ctx, func(l *ledger) (bool, error) {
		if c := l.find(s.Name); c != nil {
			if c.Name != s.Name || c.ClaimID != s.ClaimID || c.Epoch != s.Epoch {
				return false, fmt.Errorf("%w: it belongs to claim %s of log %s", provider.ErrNameTaken, c.ClaimID, c.Epoch)
			}
			made = *c
			return false, nil
		}
		made = claim{Name: s.Name, Cluster: s.Cluster, Pool: s.Pool, ClaimID: s.ClaimID, Epoch: s.Epoch,
			CreatedAt: p.o.Clock.Now().UTC().Round(0), Stage: stageCreated}
		l.Claims = append(l.Claims, made)
		return true, nil
	})
	if err != nil {
		return fail(err)
	}
	if made.Stage == stageCreated {
		return p.machine(made, nil), nil
	}
	return p.Get(ctx, s.Name)
}

// Start implements provider.NodeProvider: it asks the group for one more
// instance, unless that was done. A call whose reply was lost counts as done.
func (p *Provider) Start(ctx context.Context, name string) error {
	l, s, err := p.settled(ctx)
	if err != nil {
		return fmt.Errorf("start node %s: %w", name, err)
	}
	c := l.find(name)
	switch {
	case c == nil:
		return fmt.Errorf("start node %s: %w", name, provider.ErrNotFound)
	case p.machine(*c, s).State == provider.Exited:
		return fmt.Errorf("start node %s: %w", name, provider.ErrExited)
	case c.Stage != stageCreated:
		return nil
	}
	if err := p.raise(ctx, c.Name); err != nil {
		return fmt.Errorf("start node %s: %w", name, err)
	}
	return nil
}

// Stop implements provider.NodeProvider. The protocol can't stop an instance, so
// its deletion is ordered: the Node object is still there, which a provider may
// need in order to know the node.
func (p *Provider) Stop(ctx context.Context, name string) error {
	l, _, err := p.settled(ctx)
	if err != nil {
		return fmt.Errorf("stop node %s: %w", name, err)
	}
	if l.find(name) == nil {
		return fmt.Errorf("stop node %s: %w", name, provider.ErrNotFound)
	}
	if err := p.order(ctx, name); err != nil {
		return fmt.Errorf("stop node %s: %w", name, err)
	}
	return nil
}

// Delete implements provider.NodeProvider: it waits for nothing, and is an error
// as long as the instance is there.
func (p *Provider) Delete(ctx context.Context, name string) error {
	if err := p.Stop(ctx, name); err != nil {
		return fmt.Errorf("delete node %s: %w", name, err)
	}
	_, err := p.change(ctx, p.look, func(l *ledger, s *sight) (bool, error) {
		c := l.find(name)
		if c == nil {
			return false, provider.ErrNotFound // somebody else was first
		}
		in, there := s.find(c.Instance)
		switch {
		case c.Stage == stageBound && there && !in.deleting:
			return false, fmt.Errorf("provider %s still has instance %s in node group %s; it is deleted again until it is gone", p.o.Address, c.Instance, p.o.NodeGroup)
		case c.Stage == stageDoubtful, c.waits():
			c.Gone = true // nobody waits for it, but it may come
			l.Version++
		default:
			l.remove(c)
		}
		return true, nil
	})
	if err != nil {
		return fmt.Errorf("delete node %s: %w", name, err)
	}
	return nil
}

// Get implements provider.NodeProvider.
func (p *Provider) Get(ctx context.Context, name string) (provider.Machine, error) {
	l, s, err := p.settled(ctx)
	if err != nil {
		return provider.Machine{}, fmt.Errorf("look at node %s: %w", name, err)
	}
	c := l.find(name)
	if c == nil {
		return provider.Machine{}, fmt.Errorf("look at node %s: %w", name, provider.ErrNotFound)
	}
	return p.machine(*c, s), nil
}

// List implements provider.NodeProvider.
func (p *Provider) List(ctx context.Context) ([]provider.Machine, error) {
	l, s, err := p.settled(ctx)
	if err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	var out []provider.Machine
	for i := range l.Claims {
		if c := &l.Claims[i]; c.visible() {
			out = append(out, p.machine(*c, s))
		}
	}
	slices.SortFunc(out, func(a, b provider.Machine) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}

// Check says whether the provider answers and has the node group, by reading alone.
// Nothing of the ledger is looked at.
func (p *Provider) Check(ctx context.Context) error {
	_, err := p.group(ctx)
	return err
}

// Logs implements provider.NodeProvider: the protocol has no logs, but says what
// went wrong with an instance.
func (p *Provider) Logs(ctx context.Context, name string, maxBytes int) (string, error) {
	l, s, err := p.settled(ctx)
	if err != nil {
		return "", fmt.Errorf("read what the provider says of node %s: %w", name, err)
	}
	c := l.find(name)
	if c == nil {
		return "", fmt.Errorf("read what the provider says of node %s: %w", name, provider.ErrNotFound)
	}
	text := p.trouble(c, s)
	if text == "" && c.Stage == stageAsked {
		text = fmt.Sprintf("provider %s has the size of node group %s as asked for since %s, and no new instance", p.o.Address, p.o.NodeGroup, c.AskedAt.Format(time.RFC3339))
	}
	return strings.ToValidUTF8(text[max(0, len(text)-max(0, maxBytes)):], ""), nil
}

// Named implements provider.Namer.
func (p *Provider) Named(ctx context.Context, name, node string) error {
	err := p.update(ctx, func(l *ledger) (bool, error) {
		c, other := l.find(name), l.find(node)
		switch {
		case c == nil:
			return false, provider.ErrNotFound
		case c.Node == node:
			return false, nil
		case c.Node != "":
			return false, fmt.Errorf("%w: it is node %s", provider.ErrNameTaken, c.Node)
		case other != nil && other != c:
			return false, fmt.Errorf("%w: claim %s has it", provider.ErrNameTaken, other.ClaimID)
		}
		c.Node = node
		return true, nil
	})
	if err != nil {
		return fmt.Errorf("name node %s %s: %w", name, node, err)
	}
	return nil
}

// trouble is why the machine runs no more, empty when it does. s may be nil for
// a claim that nothing was asked for.
func (p *Provider) trouble(c *claim, s *sight) string {
	switch {
	case c.Stage == stageDoubtful && p.o.Clock.Since(c.AskedAt) > doubtFor:
		return fmt.Sprintf("provider %s did not answer when node group %s was to grow, and its target size has not grown since %s; see the provider's log",
			p.o.Address, p.o.NodeGroup, c.AskedAt.Format(time.RFC3339))
	case c.Stage == stageBound:
		in, there := s.find(c.Instance)
		switch {
		case c.Failure != "":
			return fmt.Sprintf("provider %s says of instance %s: %s", p.o.Address, c.Instance, c.Failure)
		case !there:
			return fmt.Sprintf("provider %s has instance %s in node group %s no more", p.o.Address, c.Instance, p.o.NodeGroup)
		case in.deleting:
			return fmt.Sprintf("provider %s deletes instance %s", p.o.Address, c.Instance)
		}
	}
	return ""
}

// machine is what is known of a claim.
func (p *Provider) machine(c claim, s *sight) provider.Machine {
	m := provider.Machine{Name: c.told(), ID: p.o.NodeGroup + "/" + c.Name, Host: p.o.Address, Image: "node group " + p.o.NodeGroup,
		Cluster: c.Cluster, Pool: c.Pool, ClaimID: c.ClaimID, Epoch: c.Epoch, CreatedAt: c.CreatedAt, ProviderID: c.Instance}
	switch {
	case c.Stage == stageCreated:
		m.State = provider.Created
	case c.Failure != "", c.StoppedAt.IsZero() && p.trouble(&c, s) != "":
		m.State, m.ExitCode = provider.Exited, 1
	case !c.StoppedAt.IsZero():
		m.State = provider.Exited
	default:
		m.State = provider.Running
	}
	return m
}

// group is the node group as the provider describes it.
func (p *Provider) group(ctx context.Context) (*protos.NodeGroup, error) {
	var got *protos.NodeGroupsResponse
	if err := p.call(ctx, "list the node groups", func(ctx context.Context) (err error) {
		got, err = p.client.NodeGroups(ctx, &protos.NodeGroupsRequest{})
		return err
	}); err != nil {
		return nil, err
	}
	var known []string
	for _, g := range got.GetNodeGroups() {
		if g.GetId() == p.o.NodeGroup {
			return g, nil
		}
		known = append(known, g.GetId())
	}
	return nil, fmt.Errorf("provider %s has no node group %q for pool %s; it has %s: %w", p.o.Address, p.o.NodeGroup, p.o.Pool,
		cmp.Or(strings.Join(known, ", "), "none"), errNoGroup)
}

// errNoGroup is no refusal for ever: groups can be added.
var errNoGroup = errors.New("set externalgrpc.node_group to one of them, or add it there")

// maxSize is the group's own limit; 0: none.
func (p *Provider) maxSize(ctx context.Context) (int32, error) {
	g, err := p.group(ctx)
	if err != nil {
		return 0, err
	}
	return g.GetMaxSize(), nil
}
