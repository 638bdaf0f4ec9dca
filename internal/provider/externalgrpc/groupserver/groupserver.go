// Package groupserver is a provider that speaks the externalgrpc protocol, for
// tests: it keeps one node group, whose instances somebody makes, and can lose
// its words.
package groupserver

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/provider/externalgrpc/protos"
)

// Fault is how a call goes wrong. The zero value is a call that does not.
type Fault struct {
	// Refuse ends the call with this error before anything is done.
	Refuse error
	// Lose does what is asked for and answers with this error.
	Lose error
	// Block waits for it before anything is done, even when the caller has gone.
	Block <-chan struct{}
}

// Instance is one machine of the group.
type Instance struct {
	ID       string
	State    protos.InstanceStatus_InstanceState
	Error    string // its code and message
	Deleting bool   // it stays in the list until Finish
}

// Server is the provider. Set its fields before Serve.
type Server struct {
	protos.UnimplementedCloudProviderServer
	Group    string
	MaxSize  int32
	Template *corev1.Node // nil: it does not tell
	// Make makes the n-th instance and returns its id; default: fake://<group>/<n>.
	Make func(n int) (string, error)
	// Remove removes it; default: nothing is to be done.
	Remove func(id string) error
	// Slow keeps instances from coming until Fulfil, and from going until Finish.
	Slow bool
	// Fails gives every instance this error.
	Fails string
	// NoDecrease refuses to lower the target.
	NoDecrease bool

	mu        sync.Mutex
	target    int32
	made      int
	instances map[string]*Instance
	faults    map[string][]Fault
	calls     map[string]int
	deleted   []string // ids, in order
}

// Serve serves until the test ends, and returns the address.
func (s *Server) Serve(t *testing.T, o ...grpc.ServerOption) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	g := grpc.NewServer(o...)
	protos.RegisterCloudProviderServer(g, s)
	done := make(chan struct{})
	go func() { defer close(done); _ = g.Serve(l) }()
	t.Cleanup(func() { g.Stop(); <-done })
	return l.Addr().String()
}

// Next lets the next calls of a method go wrong.
func (s *Server) Next(method string, faults ...Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.faults == nil {
		s.faults = map[string][]Fault{}
	}
	s.faults[method] = append(s.faults[method], faults...)
}

// Calls returns how often a method was called.
func (s *Server) Calls(method string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[method]
}

// Target returns the target size.
func (s *Server) Target() int32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.target
}

// IDs returns the instances, by id.
func (s *Server) IDs() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.instances))
}

// Deleted returns the instances whose deletion was asked for, in order.
func (s *Server) Deleted() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.deleted)
}

// Grow changes the target as somebody else would.
func (s *Server) Grow(delta int32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.target += delta
	if !s.Slow {
		s.fulfil()
	}
}

// Fulfil lets the instances come that are asked for, as a group does that keeps
// its size by itself.
func (s *Server) Fulfil() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fulfil()
}

// Finish lets those go that are being deleted.
func (s *Server) Finish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.instances, func(_ string, i *Instance) bool { return i.Deleting })
}

// Vanish takes an instance away without changing the target.
func (s *Server) Vanish(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.instances, id)
}

// Rename gives an instance another id, as one that got its real one.
func (s *Server) Rename(id, to string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := s.instances[id]
	delete(s.instances, id)
	i.ID = to
	s.instances[to] = i
}

func (s *Server) fulfil() {
	live := 0
	for _, i := range s.instances {
		if !i.Deleting {
			live++
		}
	}
	for ; live < int(s.target); live++ {
		s.made++
		id, err := fmt.Sprintf("fake://%s/%06d", s.Group, s.made), error(nil)
		if s.Make != nil {
			id, err = s.Make(s.made)
		}
		i := &Instance{ID: id, State: protos.InstanceStatus_instanceRunning, Error: s.Fails}
		if err != nil {
			i.ID, i.Error = cmp.Or(id, fmt.Sprintf("failed-%d", s.made)), err.Error()
		}
		if i.Error != "" {
			i.State = protos.InstanceStatus_instanceCreating
		}
		if s.instances == nil {
			s.instances = map[string]*Instance{}
		}
		s.instances[i.ID] = i
	}
}

// do runs one call with its fault.
func (s *Server) do(method string, f func() error) error {
	s.mu.Lock()
	if s.calls == nil {
		s.calls = map[string]int{}
	}
	s.calls[method]++
	var fault Fault
	if all := s.faults[method]; len(all) > 0 {
		fault, s.faults[method] = all[0], all[1:]
	}
	s.mu.Unlock()
	if fault.Block != nil {
		<-fault.Block
	}
	if fault.Refuse != nil {
		return fault.Refuse
	}
	s.mu.Lock()
	err := f()
	s.mu.Unlock()
	return cmp.Or(err, fault.Lose)
}

func (s *Server) known(id string) error {
	if id != s.Group {
		return status.Errorf(codes.NotFound, "there is no node group %q", id)
	}
	return nil
}

// NodeGroups implements the protocol.
func (s *Server) NodeGroups(context.Context, *protos.NodeGroupsRequest) (*protos.NodeGroupsResponse, error) {
	return &protos.NodeGroupsResponse{NodeGroups: []*protos.NodeGroup{{Id: s.Group, MaxSize: s.MaxSize}}}, s.do("NodeGroups", func() error { return nil })
}

// Refresh implements the protocol.
func (s *Server) Refresh(context.Context, *protos.RefreshRequest) (*protos.RefreshResponse, error) {
	return &protos.RefreshResponse{}, s.do("Refresh", func() error { return nil })
}

// NodeGroupTargetSize implements the protocol.
func (s *Server) NodeGroupTargetSize(_ context.Context, r *protos.NodeGroupTargetSizeRequest) (*protos.NodeGroupTargetSizeResponse, error) {
	out := &protos.NodeGroupTargetSizeResponse{}
	return out, s.do("NodeGroupTargetSize", func() error {
		out.TargetSize = s.target
		return s.known(r.GetId())
	})
}

// NodeGroupIncreaseSize implements the protocol.
func (s *Server) NodeGroupIncreaseSize(_ context.Context, r *protos.NodeGroupIncreaseSizeRequest) (*protos.NodeGroupIncreaseSizeResponse, error) {
	return &protos.NodeGroupIncreaseSizeResponse{}, s.do("NodeGroupIncreaseSize", func() error {
		if err := s.known(r.GetId()); err != nil {
			return err
		}
		if r.GetDelta() <= 0 {
			return status.Errorf(codes.InvalidArgument, "delta is %d, expected more than 0", r.GetDelta())
		}
		s.target += r.GetDelta()
		if !s.Slow {
			s.fulfil()
		}
		return nil
	})
}

// NodeGroupDecreaseTargetSize implements the protocol.
func (s *Server) NodeGroupDecreaseTargetSize(_ context.Context, r *protos.NodeGroupDecreaseTargetSizeRequest) (*protos.NodeGroupDecreaseTargetSizeResponse, error) {
	return &protos.NodeGroupDecreaseTargetSizeResponse{}, s.do("NodeGroupDecreaseTargetSize", func() error {
		switch {
		case s.known(r.GetId()) != nil:
			return s.known(r.GetId())
		case s.NoDecrease:
			return status.Error(codes.Unimplemented, "not offered")
		case r.GetDelta() >= 0:
			return status.Errorf(codes.InvalidArgument, "delta is %d, expected less than 0", r.GetDelta())
		case int(s.target+r.GetDelta()) < len(s.instances):
			return status.Error(codes.FailedPrecondition, "that would delete a node that is there")
		}
		s.target += r.GetDelta()
		return nil
	})
}

// NodeGroupDeleteNodes implements the protocol.
func (s *Server) NodeGroupDeleteNodes(_ context.Context, r *protos.NodeGroupDeleteNodesRequest) (*protos.NodeGroupDeleteNodesResponse, error) {
	return &protos.NodeGroupDeleteNodesResponse{}, s.do("NodeGroupDeleteNodes", func() error {
		for _, n := range r.GetNodes() {
			i := s.instances[n.GetProviderID()]
			if i == nil || n.GetName() == "" {
				return status.Errorf(codes.NotFound, "node %q with provider id %q is not in the group", n.GetName(), n.GetProviderID())
			}
			s.deleted = append(s.deleted, i.ID)
			if i.Deleting {
				continue
			}
			s.target--
			if s.Slow {
				i.Deleting, i.State = true, protos.InstanceStatus_instanceDeleting
				continue
			}
			if s.Remove != nil {
				if err := s.Remove(i.ID); err != nil {
					return err
				}
			}
			delete(s.instances, i.ID)
		}
		return nil
	})
}

// NodeGroupNodes implements the protocol.
func (s *Server) NodeGroupNodes(_ context.Context, r *protos.NodeGroupNodesRequest) (*protos.NodeGroupNodesResponse, error) {
	out := &protos.NodeGroupNodesResponse{}
	return out, s.do("NodeGroupNodes", func() error {
		for _, id := range slices.Sorted(maps.Keys(s.instances)) {
			i := s.instances[id]
			e := &protos.InstanceErrorInfo{}
			if i.Error != "" {
				e.ErrorCode, e.ErrorMessage = "Failed", i.Error
			}
			out.Instances = append(out.Instances, &protos.Instance{Id: i.ID, Status: &protos.InstanceStatus{InstanceState: i.State, ErrorInfo: e}})
		}
		return s.known(r.GetId())
	})
}

// NodeGroupTemplateNodeInfo implements the protocol.
func (s *Server) NodeGroupTemplateNodeInfo(context.Context, *protos.NodeGroupTemplateNodeInfoRequest) (*protos.NodeGroupTemplateNodeInfoResponse, error) {
	out := &protos.NodeGroupTemplateNodeInfoResponse{}
	return out, s.do("NodeGroupTemplateNodeInfo", func() (err error) {
		if s.Template == nil {
			return status.Error(codes.Unimplemented, "not offered")
		}
		out.NodeBytes, err = s.Template.Marshal()
		return err
	})
}

// ErrLost is a reply that never came.
var ErrLost = status.Error(codes.Unavailable, "the connection was lost")

// ErrRefused is a provider that says no.
var ErrRefused = status.Error(codes.ResourceExhausted, "no room")
