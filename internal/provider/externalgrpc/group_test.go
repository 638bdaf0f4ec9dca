package externalgrpc

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/provider"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/provider/externalgrpc/groupserver"
)

// bundle is a node group, and providers that share a ledger and a clock.
type bundle struct {
	*groupserver.Server
	t       *testing.T
	store   *memory
	clock   *clocktesting.FakePassiveClock
	address string
	timeout time.Duration
	p       *Provider
}

func setup(t *testing.T, change ...func(*groupserver.Server)) *bundle {
	t.Helper()
	t.Parallel()
	b := &bundle{t: t, Server: &groupserver.Server{Group: "workers"}, store: newMemory(),
		clock: clocktesting.NewFakePassiveClock(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)), timeout: 20 * time.Second}
	for _, f := range change {
		f(b.Server)
	}
	b.address = b.Serve(t)
	b.p = b.open()
	return b
}

// open makes another provider, as another process would.
func (b *bundle) open() *Provider {
	b.t.Helper()
	p, err := New(Options{Cluster: "home", Pool: "burst", Address: b.address, NodeGroup: "workers", Store: b.store, Clock: b.clock, Timeout: b.timeout})
	require.NoError(b.t, err)
	b.t.Cleanup(func() { _ = p.Close() })
	return p
}

func spec(name string) provider.Spec {
	return provider.Spec{Name: name, Cluster: "home", Pool: "burst", ClaimID: "claim-" + name, Epoch: "e", CPUMilli: 1000, MemoryBytes: 1 << 30}
}

func (b *bundle) create(names ...string) {
	b.t.Helper()
	for _, n := range names {
		_, err := b.p.Create(b.t.Context(), spec(n))
		require.NoError(b.t, err)
	}
}

// get looks at a machine, later than whatever was seen before.
func (b *bundle) get(name string) provider.Machine {
	b.t.Helper()
	b.later(2 * time.Second)
	m, err := b.p.Get(b.t.Context(), name)
	require.NoError(b.t, err)
	return m
}

func (b *bundle) list() []provider.Machine {
	b.t.Helper()
	b.later(2 * time.Second)
	all, err := b.p.List(b.t.Context())
	require.NoError(b.t, err)
	return all
}

func (b *bundle) later(d time.Duration) { b.clock.SetTime(b.clock.Now().Add(d)) }

func (b *bundle) remove(name string) {
	b.t.Helper()
	require.NoError(b.t, b.p.Stop(b.t.Context(), name))
	require.NoError(b.t, b.p.Delete(b.t.Context(), name))
}

func slow(s *groupserver.Server) { s.Slow = true }

func TestIncreaseWhoseReplyIsLostIsMadeOnce(t *testing.T) {
	b := setup(t)
	b.create("a")
	b.Next("NodeGroupIncreaseSize", groupserver.Fault{Lose: groupserver.ErrLost})
	require.NoError(t, b.p.Start(t.Context(), "a"))
	require.NoError(t, b.open().Start(t.Context(), "a"), "another process goes on")
	m := b.get("a")
	require.Equal(t, provider.Running, m.State)
	require.Equal(t, b.IDs(), []string{m.ProviderID})
	require.Equal(t, 1, b.Calls("NodeGroupIncreaseSize"))
	b.remove("a")
	require.Empty(t, b.IDs())
	require.Zero(t, b.Target())
}

func TestIncreaseThatNeverArrivedFailsItsClaimAndIsNotRepeated(t *testing.T) {
	b := setup(t)
	b.create("a")
	b.Next("NodeGroupIncreaseSize", groupserver.Fault{Refuse: groupserver.ErrLost})
	require.NoError(t, b.p.Start(t.Context(), "a"), "it may have been carried out")
	require.Equal(t, provider.Running, b.get("a").State)
	b.later(doubtFor)
	require.Equal(t, provider.Exited, b.get("a").State)
	require.ErrorIs(t, b.p.Start(t.Context(), "a"), provider.ErrExited)
	log, err := b.p.Logs(t.Context(), "a", 1000)
	require.NoError(t, err)
	require.Contains(t, log, "did not answer when node group workers was to grow")
	require.Contains(t, log, b.address)
	b.remove("a")
	require.Equal(t, 1, b.Calls("NodeGroupIncreaseSize"))
	require.Empty(t, b.list())
	require.Zero(t, b.Target())
}

func TestIncreaseThatIsCarriedOutAfterItsClaimFailedLeavesNothing(t *testing.T) {
	b := setup(t, slow)
	b.timeout = 50 * time.Millisecond
	b.p = b.open()
	b.create("a")
	release := make(chan struct{})
	b.Next("NodeGroupIncreaseSize", groupserver.Fault{Block: release})
	require.NoError(t, b.p.Start(t.Context(), "a"), "it may be carried out")
	b.later(time.Minute)
	require.Equal(t, provider.Exited, b.get("a").State)
	b.remove("a")
	require.Empty(t, b.list())

	close(release)
	require.Eventually(t, func() bool { return b.Target() == 1 }, time.Minute, time.Millisecond)
	require.Empty(t, b.list(), "nothing has come")
	b.Fulfil()
	late := b.list()
	require.Len(t, late, 1)
	require.Equal(t, "a", late[0].Name)
	require.Equal(t, "claim-a", late[0].ClaimID)
	require.Equal(t, provider.Exited, late[0].State, "nobody waits for it")
	b.remove("a")
	b.Finish()
	require.Empty(t, b.list())
	require.Empty(t, b.IDs())
	require.Zero(t, b.Target())
}

func TestLateInstanceServesWhoeverWaits(t *testing.T) {
	b := setup(t, slow)
	b.create("a", "b")
	b.Next("NodeGroupIncreaseSize", groupserver.Fault{Refuse: groupserver.ErrLost})
	require.NoError(t, b.p.Start(t.Context(), "a"))
	b.later(time.Minute)
	b.remove("a")
	require.NoError(t, b.p.Start(t.Context(), "b"))
	b.Grow(1) // a's call
	b.Fulfil()
	machines := b.list()
	require.Len(t, machines, 2)
	require.Equal(t, []provider.State{provider.Exited, provider.Running}, []provider.State{machines[0].State, machines[1].State})
	require.NotEqual(t, machines[0].ProviderID, machines[1].ProviderID)
	require.ElementsMatch(t, b.IDs(), []string{machines[0].ProviderID, machines[1].ProviderID})
}

func TestRefusedIncreaseIsTriedAgain(t *testing.T) {
	b := setup(t)
	b.create("a")
	b.Next("NodeGroupIncreaseSize", groupserver.Fault{Refuse: groupserver.ErrRefused})
	err := b.p.Start(t.Context(), "a")
	require.ErrorContains(t, err, "provider "+b.address+", node group workers of pool burst: increase the size by 1")
	require.ErrorContains(t, err, "no room")
	require.NotErrorIs(t, err, provider.ErrRefused, "there may be room later")
	require.Equal(t, provider.Created, b.get("a").State, "it was never started")
	require.NoError(t, b.p.Start(t.Context(), "a"))
	require.Equal(t, provider.Running, b.get("a").State)
	require.EqualValues(t, 1, b.Target())
}

func TestErrorOfAnIncreaseThatWasCarriedOutIsNoError(t *testing.T) {
	b := setup(t)
	b.create("a")
	b.Next("NodeGroupIncreaseSize", groupserver.Fault{Lose: status.Error(codes.Unknown, "context deadline exceeded")})
	require.NoError(t, b.p.Start(t.Context(), "a"))
	require.Equal(t, provider.Running, b.get("a").State)
	require.EqualValues(t, 1, b.Target())
}

func TestManyClaimsOfTwoProcessesGetOneInstanceEach(t *testing.T) {
	b := setup(t)
	other := b.open()
	const claims = 40
	var wg sync.WaitGroup
	for i := range claims {
		name := fmt.Sprintf("n-%02d", i)
		b.create(name)
		for _, p := range []*Provider{b.p, other} {
			wg.Go(func() {
				require.Eventually(t, func() bool { return p.Start(t.Context(), name) == nil }, time.Minute, 5*time.Millisecond)
			})
		}
	}
	wg.Wait()
	machines := b.list()
	require.Len(t, machines, claims)
	ids := map[string]bool{}
	for _, m := range machines {
		require.Equal(t, provider.Running, m.State)
		ids[m.ProviderID] = true
	}
	require.Len(t, ids, claims)
	require.EqualValues(t, claims, b.Target())
	require.Len(t, b.IDs(), claims)
}

func TestClaimsThatWaitForACallShareTheNext(t *testing.T) {
	b := setup(t)
	release := make(chan struct{})
	b.Next("NodeGroupIncreaseSize", groupserver.Fault{Block: release})
	b.create("first", "x", "y", "z")
	var wg sync.WaitGroup
	wg.Go(func() { require.NoError(t, b.p.Start(t.Context(), "first")) })
	require.Eventually(t, func() bool { return b.Calls("NodeGroupIncreaseSize") == 1 }, time.Minute, time.Millisecond)
	for _, name := range []string{"x", "y", "z"} {
		wg.Go(func() { require.NoError(t, b.p.Start(t.Context(), name)) })
	}
	require.Eventually(t, func() bool {
		b.p.mu.Lock()
		defer b.p.mu.Unlock()
		return b.p.next != nil && len(b.p.next.names) == 3
	}, time.Minute, time.Millisecond)
	close(release)
	wg.Wait()
	require.Equal(t, 2, b.Calls("NodeGroupIncreaseSize"))
	require.EqualValues(t, 4, b.Target())
}

func TestInstancesOfOthersAreNeverTaken(t *testing.T) {
	b := setup(t)
	b.Grow(2)
	theirs := b.IDs()
	b.create("a")
	require.NoError(t, b.p.Start(t.Context(), "a"))
	a := b.get("a")
	require.NotContains(t, theirs, a.ProviderID)
	b.Grow(1) // while no claim waits
	b.create("b")
	require.NoError(t, b.p.Start(t.Context(), "b"))
	b.get("b")
	b.remove("a")
	b.remove("b")
	require.Len(t, b.IDs(), 3)
	require.Subset(t, b.IDs(), theirs)
	require.EqualValues(t, 3, b.Target())
	require.Len(t, b.Deleted(), 2)
}

func TestFailedInstanceSaysWhyAndIsRemoved(t *testing.T) {
	b := setup(t, func(s *groupserver.Server) {
		s.Make = func(int) (string, error) { return "", errors.New("no addresses left") }
	})
	b.create("a")
	require.NoError(t, b.p.Start(t.Context(), "a"))
	m := b.get("a")
	require.Equal(t, provider.Exited, m.State)
	require.Equal(t, 1, m.ExitCode)
	log, err := b.p.Logs(t.Context(), "a", 1000)
	require.NoError(t, err)
	require.Contains(t, log, "no addresses left")
	b.remove("a")
	require.Empty(t, b.IDs())
	require.Zero(t, b.Target())
}

func TestInstanceThatNeverCameIsWithdrawn(t *testing.T) {
	b := setup(t, slow)
	b.create("a", "b")
	require.NoError(t, b.p.Start(t.Context(), "a"))
	require.NoError(t, b.p.Start(t.Context(), "b"))
	require.Equal(t, provider.Running, b.get("a").State)
	log, err := b.p.Logs(t.Context(), "a", 1000)
	require.NoError(t, err)
	require.Contains(t, log, "no new instance")
	b.remove("a")
	require.EqualValues(t, 1, b.Target())
	b.Fulfil()
	require.Len(t, b.list(), 1)
	require.Equal(t, provider.Running, b.get("b").State)
}

func TestWithdrawalWhoseReplyIsLostIsMadeOnce(t *testing.T) {
	b := setup(t, slow)
	b.create("a", "b")
	require.NoError(t, b.p.Start(t.Context(), "a"))
	require.NoError(t, b.p.Start(t.Context(), "b"))
	b.Next("NodeGroupDecreaseTargetSize", groupserver.Fault{Lose: groupserver.ErrLost})
	b.remove("a")
	require.Equal(t, 1, b.Calls("NodeGroupDecreaseTargetSize"))
	require.EqualValues(t, 1, b.Target())
}

func TestInstanceThatCanNotBeWithdrawnIsDeletedWhenItComes(t *testing.T) {
	b := setup(t, slow, func(s *groupserver.Server) { s.NoDecrease = true })
	b.create("a")
	require.NoError(t, b.p.Start(t.Context(), "a"))
	b.remove("a")
	require.Empty(t, b.list())
	b.Fulfil()
	late := b.list()
	require.Len(t, late, 1)
	b.remove("a")
	b.Finish()
	require.Empty(t, b.list())
	require.Zero(t, b.Target())
	require.Empty(t, b.IDs())
}

func TestDeletionIsDoneWhenTheInstanceIsGone(t *testing.T) {
	b := setup(t)
	b.create("a")
	require.NoError(t, b.p.Start(t.Context(), "a"))
	b.get("a")
	b.Next("NodeGroupDeleteNodes", groupserver.Fault{Refuse: groupserver.ErrLost}, groupserver.Fault{Lose: groupserver.ErrLost})
	require.ErrorContains(t, b.p.Stop(t.Context(), "a"), "delete instance")
	require.Error(t, b.p.Delete(t.Context(), "a"))
	require.NoError(t, b.p.Delete(t.Context(), "a"))
	require.ErrorIs(t, b.p.Delete(t.Context(), "a"), provider.ErrNotFound)
	require.Empty(t, b.IDs())
	require.Len(t, b.Deleted(), 1)
}

func TestInstanceThatIsBeingDeletedIsGone(t *testing.T) {
	b := setup(t, slow)
	b.create("a")
	require.NoError(t, b.p.Start(t.Context(), "a"))
	b.Fulfil()
	b.get("a")
	b.remove("a")
	require.Empty(t, b.list())
	b.create("b")
	require.NoError(t, b.p.Start(t.Context(), "b"))
	require.Empty(t, b.get("b").ProviderID, "the one that goes is not its")
	b.Finish()
	b.Fulfil()
	require.Equal(t, b.IDs(), []string{b.get("b").ProviderID})
	require.Len(t, b.Deleted(), 1)
}

func TestVanishedInstanceOfAKnownNodeHasEnded(t *testing.T) {
	b := setup(t)
	b.create("a")
	require.NoError(t, b.p.Start(t.Context(), "a"))
	require.NoError(t, b.p.Named(t.Context(), "a", "ip-10-0-0-1"))
	m := b.get("ip-10-0-0-1")
	b.Vanish(m.ProviderID)
	require.Equal(t, provider.Exited, b.get("a").State)
	// The group keeps its size by itself: what replaces it is nobody's.
	b.Fulfil()
	b.remove("a")
	require.Empty(t, b.IDs())
	require.Zero(t, b.Target())
	require.Empty(t, b.list())
}

func TestIdOfAnInstanceMayChangeUntilItsNodeIsKnown(t *testing.T) {
	b := setup(t)
	b.create("a")
	require.NoError(t, b.p.Start(t.Context(), "a"))
	b.Rename(b.get("a").ProviderID, "fake://real")
	m := b.get("a")
	require.Equal(t, "fake://real", m.ProviderID)
	require.Equal(t, provider.Running, m.State)
}

func TestNamedMachineAnswersToBothNames(t *testing.T) {
	b := setup(t)
	b.create("a", "b")
	require.NoError(t, b.p.Start(t.Context(), "a"))
	for range 2 {
		require.NoError(t, b.p.Named(t.Context(), "a", "ip-10-0-0-1"))
	}
	require.ErrorIs(t, b.p.Named(t.Context(), "a", "ip-10-0-0-2"), provider.ErrNameTaken)
	require.ErrorIs(t, b.p.Named(t.Context(), "b", "ip-10-0-0-1"), provider.ErrNameTaken)
	require.ErrorIs(t, b.p.Named(t.Context(), "c", "x"), provider.ErrNotFound)
	require.Equal(t, b.get("a"), b.get("ip-10-0-0-1"))
	require.Equal(t, "ip-10-0-0-1", b.list()[1].Name)
	_, err := b.p.Create(t.Context(), func() provider.Spec { s := spec("ip-10-0-0-1"); return s }())
	require.ErrorIs(t, err, provider.ErrNameTaken)
	b.remove("ip-10-0-0-1")
	require.Empty(t, b.IDs())
}

func TestProcessThatDiedInTheMiddleOfACallIsFollowed(t *testing.T) {
	b := setup(t)
	b.create("a", "b")
	broken := errors.New("the disk is full")
	require.Len(t, b.list(), 2) // the ledger is settled
	// Intent is written, what became of it is not.
	b.store.errs = []error{nil, broken}
	require.NoError(t, b.p.Start(t.Context(), "a"))
	next := b.open()
	require.ErrorIs(t, next.Start(t.Context(), "b"), errBusy, "the call may be in flight")
	b.later(b.timeout + busyMargin)
	require.NoError(t, next.Start(t.Context(), "b"))
	require.Equal(t, provider.Running, b.get("a").State)
	require.NotEqual(t, b.get("a").ProviderID, b.get("b").ProviderID)
	require.EqualValues(t, 2, b.Target())
}

func TestGroupIsNotRaisedBeyondItsLimit(t *testing.T) {
	b := setup(t, func(s *groupserver.Server) { s.MaxSize = 1 })
	b.create("a", "b")
	require.NoError(t, b.p.Start(t.Context(), "a"))
	err := b.p.Start(t.Context(), "b")
	require.ErrorIs(t, err, provider.ErrRefused)
	require.ErrorContains(t, err, "lower max of pool burst, or raise the group's")
	require.EqualValues(t, 1, b.Target())
}

func TestGroupThatDoesNotExistIsNamed(t *testing.T) {
	b := setup(t, func(s *groupserver.Server) { s.Group = "others" })
	_, err := b.p.Create(t.Context(), spec("a"))
	require.ErrorContains(t, err, `has no node group "workers" for pool burst; it has others`)
}

func TestSpecThatTheGroupCanNotBeIsRefused(t *testing.T) {
	b := setup(t, func(s *groupserver.Server) {
		s.Template = &corev1.Node{
			Spec: corev1.NodeSpec{Taints: []corev1.Taint{{Key: "gpu", Value: "yes", Effect: corev1.TaintEffectNoSchedule}, {Key: "soft", Effect: corev1.TaintEffectPreferNoSchedule}}},
			Status: corev1.NodeStatus{Allocatable: corev1.ResourceList{
				corev1.ResourceCPU: resource.MustParse("900m"), corev1.ResourceMemory: resource.MustParse("512Mi")}},
		}
	})
	_, err := b.p.Create(t.Context(), spec("a"))
	require.ErrorIs(t, err, provider.ErrRefused)
	require.ErrorContains(t, err, "has nodes of 900m CPU, pool burst says 1000m")
	require.ErrorContains(t, err, "bytes of memory")
	require.ErrorContains(t, err, "taint gpu=yes:NoSchedule")
	require.NotContains(t, err.Error(), "soft")
	good := spec("a")
	good.CPUMilli, good.MemoryBytes, good.Taints = 900, 512<<20, []provider.Taint{{Key: "gpu", Value: "yes", Effect: "NoSchedule"}}
	for range 2 {
		_, err = b.p.Create(t.Context(), good)
		require.NoError(t, err)
	}
	require.Equal(t, 2, b.Calls("NodeGroupTemplateNodeInfo"), "asked once for each spec")
}

func TestUnreachableProviderIsNamedWithWhatToDo(t *testing.T) {
	t.Parallel()
	p, err := New(Options{Cluster: "home", Pool: "burst", Address: "127.0.0.1:1", NodeGroup: "workers", Store: newMemory()})
	require.NoError(t, err)
	_, err = p.List(context.Background())
	require.ErrorContains(t, err, "provider 127.0.0.1:1, node group workers of pool burst")
	require.ErrorContains(t, err, "see whether the provider runs")
	require.NoError(t, p.Close())
}

func TestOptionsAreChecked(t *testing.T) {
	t.Parallel()
	_, err := New(Options{Address: "nowhere", TLS: TLS{CertFile: "x"}})
	for _, want := range []string{"cluster is required", "pool is required", "node group is required", "store is required", "expected host:port", "come together"} {
		require.ErrorContains(t, err, want)
	}
}
