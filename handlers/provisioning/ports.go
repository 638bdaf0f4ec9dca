package provisioning

import (
	"context"
	"errors"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/lifecycle"
)

// Errors that the ports return, possibly wrapped. Every other error is taken
// to be transient.
var (
	// ErrNotFound says that there is no such machine or Node object. When
	// removing, it is success.
	ErrNotFound = errors.New("not found")
	// ErrNameTaken says that a machine of that name belongs to someone else.
	ErrNameTaken = errors.New("machine name is taken by another owner")
	// ErrImage says that the image is missing and can't be pulled.
	ErrImage = errors.New("image is not available")
	// ErrRefused says that the provider can't ever fulfil the claim as it is.
	ErrRefused = errors.New("provider refuses the specification")
	// ErrNoSpace says that no host of the pool has room on its disk: the claim
	// fails, so that the next one may go elsewhere.
	ErrNoSpace = errors.New("no space left on the host")
	// ErrNoRoom says that no host has room for the machine now, and that nothing
	// was made.
	ErrNoRoom = errors.New("no host has room for the machine")
)

// Spec is the machine to be created.
type Spec struct {
	Cluster string
	Pool    string
	Name    string // of the node and the machine
	ClaimID string
	Epoch   string // identifies the log that the claim is recorded in
	Node    lifecycle.Spec
	Host    string // that the record names; empty: there is nothing to choose
}

// MachineState is the state of a machine.
type MachineState string

// States of a machine.
const (
	MachineCreated MachineState = "created" // exists, never started
	MachineRunning MachineState = "running"
	MachineExited  MachineState = "exited" // was started, runs no more
)

// Machine is what a provider knows of one machine of ours.
type Machine struct {
	Name      string
	ID        string // the provider's own
	Host      string
	Image     string
	Cluster   string
	Pool      string
	ClaimID   string
	Epoch     string
	State     MachineState
	ExitCode  int // of an exited machine
	CreatedAt time.Time
	// ProviderID is the spec.providerID of its Node, where the provider names the
	// nodes; empty until it is known.
	ProviderID string
}

// Machines creates and removes the machines of one pool. Every method may be
// called twice, from two processes, and again after a crash at any point.
type Machines interface {
	Creator
	Remover
	Inspector
	Namer
}

// Namer takes note of names, where a provider names the nodes.
type Namer interface {
	// Named says that the machine of that name is the node called node: from then on
	// both names mean it. Said twice it is done; ErrNotFound when there is no such
	// machine, ErrNameTaken when another one has the name.
	Named(ctx context.Context, name, node string) error
}

// Creator creates machines.
type Creator interface {
	// Create makes the machine without starting it. One of the same cluster,
	// claim and epoch is returned as it is; any other of that name is
	// ErrNameTaken.
	Create(ctx context.Context, s Spec) (Machine, error)
	// Start starts a created machine; a running one is left as it is, one that
	// has exited is not started again.
	Start(ctx context.Context, name string) error
}

// Remover removes machines.
type Remover interface {
	// Stop stops a machine, gracefully at first; ErrNotFound when there is none.
	Stop(ctx context.Context, name string) error
	// Delete removes a machine and all that belongs to it alone, e.g. its
	// volumes; ErrNotFound when there is none.
	Delete(ctx context.Context, name string) error
}

// Inspector looks at machines.
type Inspector interface {
	// Get returns one machine of ours, or ErrNotFound; a *HostsError when it may
	// be on a host that does not answer.
	Get(ctx context.Context, name string) (Machine, error)
	// List returns our machines, in any state. Machines of other pools on the
	// same host may be among them. With a *HostsError they are those of the hosts
	// that answered.
	List(ctx context.Context) ([]Machine, error)
	// Logs returns the end of a machine's output, at most maxBytes, with
	// secrets removed; ErrNotFound when there is none.
	Logs(ctx context.Context, name string, maxBytes int) (string, error)
}

// NodeObject is what the worker needs to know of a Node object.
type NodeObject struct {
	Name    string
	UID     string
	Pool    string // our labels, empty when the node is not ours
	ClaimID string
	Ready   bool
	// ProviderID is its spec.providerID.
	ProviderID string
}

// NodeClaim is what a Node object is marked with when it is found to be a claim's.
type NodeClaim struct {
	Name, ProviderID string // which must be the object's
	Pool, ClaimID    string
	Labels           map[string]string // of the pool
}

// Nodes reads and deletes the Node objects of one cluster.
type Nodes interface {
	// GetNode returns a Node object, ErrNotFound when there is none.
	GetNode(ctx context.Context, name string) (NodeObject, error)
	// ListNodes returns the Node objects that carry our claim label.
	ListNodes(ctx context.Context) ([]NodeObject, error)
	// ListByProviderID returns every Node object that has a provider's id, ours or
	// not, by that id.
	ListByProviderID(ctx context.Context) (map[string]NodeObject, error)
	// ClaimNode puts our labels and the pool's on a Node object. ErrNotFound when
	// there is none, ErrNameTaken when it is another machine's or claim's.
	ClaimNode(ctx context.Context, c NodeClaim) error
	// DeleteNode deletes the Node object if it still has this UID; ErrNotFound
	// when there is none.
	DeleteNode(ctx context.Context, name, uid string) error
	// DeleteNodePassword deletes the secret "<name>.node-password.k3s" with
	// which k3s ties a node name to one machine; ErrNotFound when there is none.
	DeleteNodePassword(ctx context.Context, name string) error
}

// Cluster is where the nodes of one cluster are made and removed.
type Cluster struct {
	Nodes Nodes
	Pools map[string]Machines // by the name of the pool
}
