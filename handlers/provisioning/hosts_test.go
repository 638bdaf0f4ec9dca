package provisioning

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/utils/clock"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/lifecycle"
)

// fakeHosts is a pool whose machines lie on several hosts.
type fakeHosts struct {
	fakeMachines
	hosts []string        // that are configured
	down  map[string]bool // of them
	tried []string        // hosts of all calls of Create
	loses bool            // the next creation is done, but its answer is lost, and its host goes down
}

func (b *testBundle) hosts(names ...string) *fakeHosts {
	w := &fakeHosts{fakeMachines: fakeMachines{b.world}, hosts: names, down: map[string]bool{}}
	b.pools[testPool] = w
	return w
}

func (w *fakeHosts) set(f func()) { w.do(func(*fakeWorld) { f() }) }

// answers is what a host error says; the caller holds the lock.
func (w *fakeHosts) answers(err error) *HostsError {
	e := &HostsError{Err: err}
	for _, h := range w.hosts {
		if w.down[h] {
			e.Missing = append(e.Missing, h)
			e.Err = fmt.Errorf("host %s does not answer", h)
			continue
		}
		e.Answered = append(e.Answered, h)
	}
	return e
}

// seen says whether the machine's host can be asked; the caller holds the lock.
func (w *fakeHosts) seen(m *Machine) bool {
	return m != nil && slices.Contains(w.hosts, m.Host) && !w.down[m.Host]
}

func (w *fakeHosts) Place(ctx context.Context, s Spec) (string, error) {
	if err := w.call(ctx, "place", s.Name); err != nil {
		return "", err
	}
	defer w.mu.Unlock()
	up := w.answers(nil).Answered
	switch {
	case len(up) == 0:
		return "", errDaemon
	case slices.Contains(up, s.Host):
		return s.Host, nil
	}
	return up[0], nil
}

func (w *fakeHosts) Create(ctx context.Context, s Spec) (Machine, error) {
	w.mu.Lock()
	down := w.down[s.Host]
	w.tried = append(w.tried, s.Host)
	w.mu.Unlock()
	if down {
		return Machine{}, errDaemon
	}
	m, err := w.fakeMachines.Create(ctx, s)
	if err != nil {
		return m, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.machines[s.Name].Host = s.Host
	m.Host = s.Host
	if w.loses {
		w.loses, w.down[s.Host] = false, true
		return Machine{}, errDaemon
	}
	return m, nil
}

func (w *fakeHosts) Get(ctx context.Context, name string) (Machine, error) {
	if err := w.call(ctx, "get", name); err != nil {
		return Machine{}, err
	}
	defer w.mu.Unlock()
	if m := w.machines[name]; w.seen(m) {
		return *m, nil
	}
	return Machine{}, w.answers(ErrNotFound)
}

func (w *fakeHosts) List(ctx context.Context) ([]Machine, error) {
	if err := w.call(ctx, "list", "machines"); err != nil {
		return nil, err
	}
	defer w.mu.Unlock()
	var out []Machine
	for _, m := range w.machines {
		if w.seen(m) {
			out = append(out, *m)
		}
	}
	if e := w.answers(nil); len(e.Missing) > 0 {
		return out, e
	}
	return out, nil
}

func TestCreationWhoseAnswerIsLostWaitsForItsHostAndMakesNoSecondMachine(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.agent()
	w := b.hosts("attic", "cellar")
	w.loses = true
	p := b.start(nil)
	b.publish("decision", b.claim())
	n := b.record(p, "tried again", func(n lifecycle.Node, _ bool) bool { return n.Creation != nil && n.Creation.Attempt >= 3 })
	require.Equal(t, "attic", n.Creation.Host, "recorded before anything was made")
	require.Contains(t, n.Creation.LastError, "host attic does not answer")
	w.set(func() { require.Equal(t, []string{"attic"}, w.tried, "cellar could have taken it") })

	w.set(func() { w.down["attic"] = false })
	created, _ := await[events.NodeCreated](b)
	require.True(t, created.Adopted)
	require.Equal(t, "attic", created.Host)
	b.phase(p, lifecycle.Ready)
	w.set(func() { require.NotContains(t, w.tried, "cellar") })
	require.Equal(t, 1, b.world.runs[testClaim])
}

func TestClaimMovesToAnotherHostWhenItsOwnSaysThatNothingWasMade(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.agent()
	b.hosts("attic", "cellar")
	b.world.failNext("create", errDaemon)
	p := b.start(nil)
	b.publish("decision", b.claim())
	require.Equal(t, "attic", b.phase(p, lifecycle.Ready).Host, "chosen again, since it can be")

	b = newBundle(t)
	b.agent()
	w := b.hosts("attic", "cellar")
	b.world.failNext("create", errDaemon)
	looked := 0
	p = b.start(func(step string, _ func()) {
		// It answers once more, that it has nothing, and then it is down.
		if step == "provisioning/inspect/after" {
			if looked++; looked == 1 {
				w.set(func() { w.down["attic"] = true })
			}
		}
	})
	b.publish("decision", b.claim())
	n := b.phase(p, lifecycle.Ready)
	require.Equal(t, "cellar", n.Host)
	require.Equal(t, "cellar", n.Creation.Host)
	require.Equal(t, 1, b.world.runs[testClaim])
}

func TestClaimThatNoHostHasRoomForFailsAtOnce(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.hosts("attic")
	b.world.failNext("place", fmt.Errorf("%w: host attic has 100m of CPU left", ErrNoRoom))
	p := b.start(nil)
	b.publish("decision", b.claim())
	failed, _ := await[events.NodeFailed](b)
	require.Equal(t, ReasonNoRoom, failed.Failure.Reason.Code)
	require.Contains(t, failed.Failure.Reason.Message, "host attic has 100m of CPU left")
	b.settled(p)
	b.says("node.failed")
	require.Zero(t, b.world.made("create"))
}

func TestMachinesOfAHostThatIsDownAreUnknownAndNotGone(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	w := b.hosts("attic", "cellar")
	s := b.sweeps()
	b.clock = clock.RealClock{}
	p := b.start(nil)
	b.ready(p)
	w.set(func() { w.down["attic"] = true })
	for range 6 {
		s.clock.Step(time.Minute)
		err := s.sweep(t.Context())
		require.ErrorContains(t, err, "host attic does not answer")
	}
	require.Empty(t, b.diverged())

	// A report that comes all the same is not believed either.
	b.publish("provisioning", events.NodeDiverged{Node: testNode, Kind: events.DivergedNodeLost, ClaimID: testClaim, Pool: testPool, At: time.Now()})
	n := b.record(p, "checked", func(n lifecycle.Node, _ bool) bool { return n.Suspicion != nil && n.Suspicion.Attempt > 1 })
	require.Equal(t, lifecycle.Ready, n.Phase)

	w.set(func() { w.down["attic"] = false })
	b.record(p, "cleared", func(n lifecycle.Node, _ bool) bool { return n.Suspicion == nil })
	b.phase(p, lifecycle.Ready)
	require.Equal(t, 1, b.world.runs[testClaim])
}

func TestMachineThatItsOwnHostDoesNotHaveIsLostAlthoughAnotherIsDown(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	w := b.hosts("attic", "cellar")
	s := b.sweeps()
	b.clock = clock.RealClock{}
	p := b.start(nil)
	b.ready(p)
	w.set(func() { w.down["cellar"] = true; delete(b.world.machines, testNode) })
	s.clock.Step(time.Minute)
	require.ErrorContains(t, s.sweep(t.Context()), "host cellar does not answer")
	require.Equal(t, []string{events.DivergedNodeLost}, b.diverged())
	lost, _ := await[events.NodeLost](b)
	require.Equal(t, ReasonMachineGone, lost.Reason.Code)
	b.settled(p)
	b.nothingLeft()
}

func TestNodeObjectWithoutAMachineIsNoOrphanWhileAHostIsDown(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	w := b.hosts("attic", "cellar")
	w.down["cellar"] = true
	b.world.objects[testNode] = NodeObject{Name: testNode, UID: "uid-1", Pool: testPool, ClaimID: testClaim}
	s := b.sweeps()
	for range 4 {
		require.Error(t, s.sweep(t.Context()))
		s.clock.Step(time.Minute)
	}
	require.Empty(t, b.diverged())
	w.set(func() { w.down["cellar"] = false })
	for range 3 {
		s.run()
		s.clock.Step(time.Minute)
	}
	require.Equal(t, []string{events.DivergedOrphanNode}, b.diverged())
}

func TestMachineOnAHostThatIsNoLongerConfiguredIsGoneOnlyWhenItsNodeIsNotReady(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	w := b.hosts("attic", "cellar")
	p := b.start(nil)
	b.ready(p)
	w.set(func() { w.hosts = []string{"cellar"} })
	b.publish("provisioning", events.NodeDiverged{Node: testNode, Kind: events.DivergedNodeLost, ClaimID: testClaim, Pool: testPool, At: time.Now()})
	b.record(p, "checked", func(n lifecycle.Node, _ bool) bool { return n.Suspicion != nil && n.Suspicion.Attempt > 1 })
	require.Equal(t, lifecycle.Ready, b.phase(p, lifecycle.Ready).Phase, "it may run")

	// Drained, its removal waits too: the agent would run on.
	b.drain()
	n := b.record(p, "removal tried", func(n lifecycle.Node, _ bool) bool { return n.Removal != nil && n.Removal.Attempt > 1 })
	require.Contains(t, n.Removal.LastError, "its node is Ready: machine "+testNode+" was made on host attic: the pool no longer has that host; configure it again")

	b.world.failNext("getnode", errDaemon)
	b.record(p, "removal tried on", func(now lifecycle.Node, _ bool) bool { return now.Removal.Attempt > n.Removal.Attempt+1 })
	w.set(func() { o := b.world.objects[testNode]; o.Ready = false; b.world.objects[testNode] = o })
	b.settled(p)
	progressed := []events.NodeRemovalProgressed{}
	for _, d := range b.events() {
		if d.Event.Type() == events.TypeNodeRemovalProgressed {
			r, err := events.Decode[events.NodeRemovalProgressed](d.Event)
			require.NoError(t, err)
			progressed = append(progressed, r)
		}
	}
	require.Len(t, progressed, 4)
	require.Contains(t, progressed[0].Detail, "taken for gone: the pool no longer has host attic")

	b = newBundle(t)
	w = b.hosts("attic", "cellar")
	p = b.start(nil)
	b.ready(p)
	w.set(func() {
		w.hosts = []string{"cellar"}
		o := b.world.objects[testNode]
		o.Ready = false
		b.world.objects[testNode] = o
	})
	b.publish("provisioning", events.NodeDiverged{Node: testNode, Kind: events.DivergedNodeLost, ClaimID: testClaim, Pool: testPool, At: time.Now()})
	lost, _ := await[events.NodeLost](b)
	require.Equal(t, ReasonMachineGone, lost.Reason.Code)
	b.settled(p)
}

func TestJudgementOfWhatHostsSay(t *testing.T) {
	t.Parallel()
	missing := errors.New("host cellar does not answer")
	for name, tc := range map[string]struct {
		host string
		err  *HostsError
		gone bool
		is   error
	}{
		"every host answers, none was chosen":  {"", &HostsError{Answered: []string{"attic"}, Err: ErrNotFound}, true, nil},
		"one is missing, none was chosen":      {"", &HostsError{Answered: []string{"attic"}, Missing: []string{"cellar"}, Err: missing}, false, missing},
		"its own answers, another is missing":  {"attic", &HostsError{Answered: []string{"attic"}, Missing: []string{"cellar"}, Err: missing}, true, nil},
		"its own is missing":                   {"cellar", &HostsError{Answered: []string{"attic"}, Missing: []string{"cellar"}, Err: missing}, false, missing},
		"its own has another name now, unseen": {"old", &HostsError{Answered: []string{"attic"}, Missing: []string{"cellar"}, Err: missing}, false, missing},
		"its own is no longer configured":      {"old", &HostsError{Answered: []string{"attic", "cellar"}, Err: ErrNotFound}, false, errUnknownHost},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, n := range []lifecycle.Node{{Name: testNode, Host: tc.host}, {Name: testNode, Creation: &lifecycle.Creation{Host: tc.host}}} {
				err := judge(n, fmt.Errorf("inspect: %w", tc.err))
				require.Equal(t, tc.gone, errors.Is(err, ErrNotFound), "%v", err)
				if tc.is != nil {
					require.ErrorIs(t, err, tc.is)
				}
			}
		})
	}
	require.NoError(t, judge(lifecycle.Node{Host: "attic"}, nil))
	require.ErrorIs(t, judge(lifecycle.Node{Host: "attic"}, ErrNotFound), ErrNotFound, "a provider without hosts")
}
