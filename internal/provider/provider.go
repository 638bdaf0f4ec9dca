// Package provider is the contract between provisioning and whatever creates
// machines that run a k3s agent. Implementations live in packages below; all of
// them pass the suite of package providertest.
//
// Creating is split into Create and Start, and removing into Stop and Delete:
// the caller checks between the two that it still owns the work, and removes
// the Node object while the machine is stopped, since a running agent would
// register it again.
package provider

import (
	"context"
	"errors"
	"time"
)

// Errors that every implementation returns, possibly wrapped.
var (
	// ErrNotFound says that there is no machine of that name. For Stop and
	// Delete it is success told apart: there was nothing to do.
	ErrNotFound = errors.New("machine not found")
	// ErrNameTaken says that a machine of that name exists and belongs to
	// another claim or epoch, or is not ours at all. It is never touched.
	ErrNameTaken = errors.New("machine name is taken by another owner")
	// ErrImage says that the image is missing and can't be pulled.
	ErrImage = errors.New("image is not available")
	// ErrRefused says that the provider can't ever fulfil this Spec as it is.
	ErrRefused = errors.New("provider refuses the specification")
	// ErrNoSpace says that the host's disk is full. It may be gone later, but not
	// by itself: whoever asked does better to look for another host.
	ErrNoSpace = errors.New("no space left on the host")
	// ErrExited says that the machine has run and has ended: it is not started a
	// second time. Its claim has failed; Logs says why.
	ErrExited = errors.New("machine has already run and exited")
)

// Taint is a taint that the node registers with.
type Taint struct{ Key, Value, Effect string }

// Spec is the machine to be created.
type Spec struct {
	Name    string // node name, and the machine's: unique for each claim
	Cluster string
	Pool    string
	ClaimID string
	// Epoch identifies the log that the claim is recorded in; a machine of
	// another epoch is not adopted.
	Epoch string
	// CPUMilli and MemoryBytes are the allocatable that the node must report,
	// in thousandths of a core and bytes.
	CPUMilli    int64
	MemoryBytes int64
	MaxPods     int64 // 0: the kubelet's default
	Labels      map[string]string
	Taints      []Taint
	// ServerVersion is the API server's, e.g. "v1.34.4+k3s1"; an agent must not
	// be newer.
	ServerVersion string
	// Host is the one that Placer.Place has chosen. Empty: the provider chooses.
	Host string
}

// State of a machine.
type State string

// States of a machine.
const (
	Created State = "created" // exists, never started
	Running State = "running"
	Exited  State = "exited" // was started, runs no more
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
	State     State
	ExitCode  int // of an Exited machine
	CreatedAt time.Time
	// ProviderID is the spec.providerID of its Node, where the provider names the
	// nodes: see Namer. Empty until it is known.
	ProviderID string
}

// NodeProvider creates and removes machines. Every method may be called twice,
// from two processes, and again after a crash at any point.
type NodeProvider interface {
	// Create makes the machine without starting it. A machine of this name with
	// the same cluster, claim and epoch is returned as it is; any other is
	// ErrNameTaken.
	Create(ctx context.Context, s Spec) (Machine, error)
	// Start starts a created machine; a running one is left as it is. A machine
	// that has exited is not started again, which ErrExited says: at most one run
	// for each claim. A machine that Create has not finished is not started
	// either: call Create again.
	Start(ctx context.Context, name string) error
	// Stop stops a machine, gracefully at first; ErrNotFound when there is none.
	// A created or exited machine is left as it is.
	Stop(ctx context.Context, name string) error
	// Delete removes a machine with everything that belongs to it alone, running
	// or not; ErrNotFound when there is none.
	Delete(ctx context.Context, name string) error
	// Get returns one machine of ours, or ErrNotFound. A provider with several
	// hosts returns a *HostsError for a machine that it does not see.
	Get(ctx context.Context, name string) (Machine, error)
	// List returns the machines of this cluster, in any state. When some of its
	// hosts do not answer, a provider returns the machines of the others, and a
	// *HostsError.
	List(ctx context.Context) ([]Machine, error)
	// Logs returns the end of a machine's output, at most maxBytes, with secrets
	// redacted; ErrNotFound when there is none.
	Logs(ctx context.Context, name string, maxBytes int) (string, error)
}

// Namer is implemented by providers whose machines choose their node's name
// themselves. Spec.Name is then the name of the claim's machine until the Node
// with the machine's ProviderID shows up, and whoever sees it says so.
type Namer interface {
	// Named says that the machine called name is the node called node: from then
	// on both names mean it, and List and Get tell node. The same said twice is
	// done. ErrNotFound when there is no such machine, ErrNameTaken when another
	// machine of ours has that name, or this one has another node.
	Named(ctx context.Context, name, node string) error
}
