package externalgrpc

import (
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/provider"
)

// callError is a call that failed, with where it went and what may help.
type callError struct {
	what, address, group, pool string
	err                        error
}

func (e *callError) Error() string {
	return fmt.Sprintf("provider %s, node group %s of pool %s: %s: %v%s", e.address, e.group, e.pool, e.what, e.err, hint(e.err))
}

func (e *callError) Unwrap() error { return e.err }

func hint(err error) string {
	switch status.Code(err) {
	case codes.Unavailable:
		return "; see whether the provider runs and its address and certificates are right"
	case codes.DeadlineExceeded:
		return "; see what the provider is waiting for, or raise externalgrpc.timeout"
	case codes.Unauthenticated, codes.PermissionDenied:
		return "; see whether it accepts our client certificate"
	case codes.Unimplemented:
		return "; the provider does not offer what every node group needs"
	case codes.ResourceExhausted:
		return "; the provider has no room, or limits calls"
	case codes.NotFound:
		return "; see whether externalgrpc.node_group is one of its groups"
	default:
		return "; see the provider's log"
	}
}

// answered reports whether the provider itself refused: its work on the call has
// ended. The other codes also stand for a reply that never came.
func answered(err error) bool {
	switch status.Code(err) {
	case codes.Canceled, codes.DeadlineExceeded, codes.Unavailable, codes.Internal, codes.DataLoss, codes.Aborted:
		return false
	default:
		return true
	}
}

// full says that the group can't grow. The Cluster Autoscaler looks at the
// limit itself, so that a provider may not.
func (p *Provider) full(name string, limit int32) error {
	return fmt.Errorf("start node %s: %w: provider %s allows node group %s %d nodes, which it has; lower max of pool %s, or raise the group's",
		name, provider.ErrRefused, p.o.Address, p.o.NodeGroup, limit, p.o.Pool)
}
