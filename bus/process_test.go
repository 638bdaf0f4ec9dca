package bus_test

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/bustest"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/bustest/chaos"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/embedded"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// These tests run subscribers in processes of their own: the test binary starts
// itself, with this variable saying what to do.
const childEnv = "BUS_TEST_CHILD"

const token = "only-for-this-test"

func TestMain(m *testing.M) {
	if chaos.Child(chaos.ChildOptions{Mutants: bus.Mutants()}) {
		return
	}
	if spec := os.Getenv(childEnv); spec != "" {
		if err := runChild(spec); err != nil {
			fmt.Fprintln(os.Stderr, "child:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// childSpec is what a subscriber process does.
type childSpec struct {
	Name string
	URL  string
	Log  string // where it writes one line for each start and end of a handler
	// HoldAt is the message of this process that it does not finish by itself; 0: none.
	HoldAt int
	// KillAt is the step of the bus at which the process kills itself, when it is
	// reached for the KillNth time (0: the first).
	KillAt  string
	KillNth int
	// Shut is the id of the event that the handler refuses for good.
	Shut string
	// KillOn is the id of the event on which the handler kills its process.
	KillOn string
	Apply  bool // change a record and emit an event
	// AckWait is longer where a process that is merely slow must not be taken for
	// dead: several processes share the cores with whatever else runs.
	AckWait time.Duration
}

func runChild(raw string) error {
	var spec childSpec
	if err := json.Unmarshal([]byte(raw), &spec); err != nil {
		return err
	}
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	log, err := os.OpenFile(spec.Log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	// One short write to a file opened for appending is never torn or overtaken:
	// the order of the lines is the order of what happened in all processes.
	say := func(what string, e events.Event) {
		_, _ = fmt.Fprintf(log, "%s %s %s\n", spec.Name, what, e.ID())
	}
	reached := atomic.Int32{}
	times := bustest.Times()
	times.AckWait = cmp.Or(spec.AckWait, times.AckWait)
	b, err := bus.Open(ctx, bus.Options{
		URL: spec.URL, Connect: []nats.Option{nats.Token(token)}, Instance: spec.Name,
		Times: times, MaxBytes: 256 << 20, MaxAttempts: 3,
		OnStep: func(step string) {
			if step == spec.KillAt && int(reached.Add(1)) == max(spec.KillNth, 1) {
				die()
			}
		},
	})
	if err != nil {
		return err
	}
	defer func() { _ = b.Close() }()
	st, err := bus.OpenState(ctx, b, bus.StateOptions[counter]{Handler: events.HandlerProvisioning})
	if err != nil {
		return err
	}
	seen := 0
	mu := make(chan struct{}, 1)
	next := func() int {
		mu <- struct{}{}
		defer func() { <-mu }()
		seen++
		return seen
	}
	return b.Run(ctx, handler{events.HandlerProvisioning, func(ctx context.Context, d bus.Delivery) error {
		if events.Extension(d.Event, events.ExtCausationID) != "" {
			return nil // emitted by this handler itself
		}
		say("start", d.Event)
		if d.Event.ID() == spec.KillOn {
			die()
		}
		if d.Event.ID() == spec.Shut {
			say("refused", d.Event)
			return bus.Terminal(errors.New("shut"))
		}
		if next() == spec.HoldAt {
			say("holds", d.Event)
			<-ctx.Done()
			say("lost", d.Event)
			return nil // a result that comes too late must not be acknowledged
		}
		if spec.Apply {
			if err := st.Apply(ctx, d, count); err != nil {
				return err
			}
		}
		say("done", d.Event)
		return nil
	}})
}

func die() {
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

// fleet is a server that listens, and the processes on it.
type fleet struct {
	t      *testing.T
	server *embedded.Server
	b      *bus.Bus
	log    string
}

func newFleet(t *testing.T) *fleet {
	s, err := embedded.Start(embedded.Options{Dir: t.TempDir(), Unsynced: true, Listen: "127.0.0.1:0", Token: token})
	require.NoError(t, err)
	t.Cleanup(s.Shutdown)
	return &fleet{t: t, server: s, b: bustest.Open(t, s), log: filepath.Join(t.TempDir(), "log")}
}

// start starts a process; it is killed at the end of the test.
func (f *fleet) start(spec childSpec) *exec.Cmd {
	f.t.Helper()
	spec.URL, spec.Log = f.server.URL(), f.log
	raw, err := json.Marshal(spec)
	require.NoError(f.t, err)
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), childEnv+"="+string(raw), "GOCOVERDIR="+f.t.TempDir())
	cmd.Stderr = os.Stderr
	require.NoError(f.t, cmd.Start())
	f.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

// killed waits until a process was killed.
func (f *fleet) killed(cmd *exec.Cmd, why string) {
	f.t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		require.ErrorContains(f.t, err, "signal: killed", why)
	case <-time.After(2 * time.Minute):
		_ = cmd.Process.Kill() // Cleanup's Wait would wait as long
		require.Fail(f.t, "the process was not killed", why)
	}
}

// line is one line of the log.
type line struct{ who, what, event string }

func (f *fleet) lines() []line {
	file, err := os.Open(f.log)
	if os.IsNotExist(err) {
		return nil
	}
	require.NoError(f.t, err)
	defer file.Close()
	var out []line
	for s := bufio.NewScanner(file); s.Scan(); {
		if w := strings.Fields(s.Text()); len(w) == 3 {
			out = append(out, line{w[0], w[1], w[2]})
		}
	}
	return out
}

// eventually waits for something in the log, which is read as a whole each time.
func (f *fleet) eventually(ok func() bool, msg string) {
	f.t.Helper()
	require.Eventually(f.t, ok, bustest.Patience, 50*time.Millisecond, msg)
}

func (f *fleet) find(who, what string) (string, bool) {
	for _, l := range f.lines() {
		if l.who == who && l.what == what {
			return l.event, true
		}
	}
	return "", false
}

func (f *fleet) done() map[string]int {
	out := map[string]int{}
	for _, l := range f.lines() {
		if l.what == "done" {
			out[l.event]++
		}
	}
	return out
}

// publish publishes events "<node>.<from>" to "<node>.<to-1>" on each node.
func (f *fleet) publish(nodes, from, to int) {
	f.t.Helper()
	for i := from; i < to; i++ {
		es := make([]events.Event, nodes)
		for n := range nodes {
			es[n] = observed(f.t, "home", "n"+num(n), "n"+num(n)+"."+num(i))
		}
		require.NoError(f.t, f.b.Publish(ctxT(f.t), es...))
	}
}

// pulled waits until n processes wait for the messages of every partition.
func (f *fleet) pulled(n int) {
	f.t.Helper()
	js := f.admin()
	for p := range bus.Partitions {
		f.eventually(func() bool {
			c, err := js.Consumer(ctxT(f.t), bus.StreamName, events.HandlerProvisioning+"-"+num(p))
			return err == nil && c.CachedInfo().NumWaiting >= n
		}, "every process waits for messages")
	}
}

// requireOrder requires that on each node no event began before the former one
// was done, none came back after a later one, and no two were open at once,
// except for those that a dead or frozen process left open, and the last one that
// a process had done when it was killed, whose acknowledgement may be missing.
func (f *fleet) requireOrder(gone ...string) {
	f.t.Helper()
	done := map[string]int{}  // by node: the highest index that is done
	last := map[string]line{} // by node: its line
	open := map[string]line{}
	lines := f.lines()
	end := map[string]int{} // by process: its last line
	for n, l := range lines {
		end[l.who] = n
	}
	for n, l := range lines {
		node, idx, _ := strings.Cut(l.event, ".")
		i, err := strconv.Atoi(idx)
		require.NoError(f.t, err)
		high, any := done[node]
		if !any {
			high = -1
		}
		switch l.what {
		case "start":
			require.LessOrEqual(f.t, i, high+1, "%v began before its predecessor was done", l)
			again := i == high && slices.Contains(gone, last[node].who) && n > end[last[node].who]
			require.True(f.t, again || i > high, "%v came back after it was done", l)
			if o, ok := open[node]; ok {
				require.Contains(f.t, gone, o.who, "%v began while %v was open", l, o)
			}
			open[node] = l
		case "done":
			require.Equal(f.t, open[node].who, l.who)
			delete(open, node)
			done[node], last[node] = i, l
		}
	}
}

func TestThreeProcessesOneKilledMidMessageLoseAndReorderNothing(t *testing.T) {
	t.Parallel()
	const nodes, each = 40, 40
	f := newFleet(t)
	victim := f.start(childSpec{Name: "victim", HoldAt: 10, AckWait: 3 * time.Second})
	f.start(childSpec{Name: "second", AckWait: 3 * time.Second})
	f.start(childSpec{Name: "third", AckWait: 3 * time.Second})
	f.pulled(3)
	f.publish(nodes, 0, each/2)
	f.eventually(func() bool { _, ok := f.find("victim", "holds"); return ok }, "the victim is in the middle of a message")
	held, _ := f.find("victim", "holds")
	require.NoError(t, victim.Process.Kill())
	f.killed(victim, "by us")
	f.publish(nodes, each/2, each)
	f.eventually(func() bool { return len(f.done()) == nodes*each }, "all 1,600 events are handled")

	f.requireOrder("victim")
	who := map[string]int{}
	for _, l := range f.lines() {
		if l.what == "done" {
			who[l.who]++
		}
		if l.event == held && l.who == "victim" {
			require.NotEqual(t, "done", l.what, "the kill hit a message in flight")
			require.NotEqual(t, "lost", l.what, "it was killed while it owned the message")
		}
	}
	require.Equal(t, 1, f.done()[held], "another process handled what the victim held")
	require.Greater(t, who["victim"], 0)
	require.Greater(t, who["second"], 100, "the work is spread: %v", who)
	require.Greater(t, who["third"], 100, "the work is spread: %v", who)
	require.Empty(t, deadLetters(t, f.b))
	t.Logf("handled by: %v", who)
}

func TestAFrozenProcessDisturbsNobodyWhenItThaws(t *testing.T) {
	t.Parallel()
	const nodes, each = 20, 20
	f := newFleet(t)
	frozen := f.start(childSpec{Name: "frozen", HoldAt: 5, AckWait: 1500 * time.Millisecond})
	f.publish(nodes, 0, 2)
	f.eventually(func() bool { _, ok := f.find("frozen", "holds"); return ok }, "it is in the middle of a message")
	held, _ := f.find("frozen", "holds")
	// A handler that was about to begin can't be kept from beginning when the
	// process thaws: everything but the held partition comes to rest first.
	heldNode, _, _ := strings.Cut(held, ".")
	f.eventually(func() bool {
		done := f.done()
		for n := range nodes {
			node := "n" + num(n)
			if mustPartition(t, "home", node) != mustPartition(t, "home", heldNode) && (done[node+".0"] == 0 || done[node+".1"] == 0) {
				return false
			}
		}
		n, err := f.b.Pending(ctxT(t), events.HandlerProvisioning)
		return err == nil && int(n) == 2*nodes-len(done) // what is done is acknowledged
	}, "all other partitions are at rest")
	require.NoError(t, frozen.Process.Signal(syscall.SIGSTOP))
	f.start(childSpec{Name: "other", AckWait: 1500 * time.Millisecond})
	// Its open pulls attract messages for a while: those wait in its buffers.
	f.publish(nodes, 2, each)
	f.eventually(func() bool { return len(f.done()) == nodes*each }, "the other process handles everything")
	require.Equal(t, 1, f.done()[held])
	before := len(f.lines())
	require.NoError(t, frozen.Process.Signal(syscall.SIGCONT))
	f.eventually(func() bool { e, ok := f.find("frozen", "lost"); return ok && e == held }, "its handler is told that it lost the message")
	f.publish(nodes, each, each+5)
	f.eventually(func() bool { return len(f.done()) == nodes*(each+5) }, "both go on")
	f.requireOrder("frozen")
	for _, l := range f.lines()[before:] {
		if l.who == "frozen" && l.what == "start" {
			_, idx, _ := strings.Cut(l.event, ".")
			i, err := strconv.Atoi(idx)
			require.NoError(t, err)
			require.GreaterOrEqual(t, i, each, "it began a message that had waited in its buffers: %v", l)
		}
	}
}

func TestKilledAtEachStepAProcessLosesAndDoublesNothing(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"provisioning/write/before", "provisioning/write/after", "provisioning/publish/after"} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			f := newFleet(t)
			victim := f.start(childSpec{Name: "victim", Apply: true, KillAt: step})
			f.publish(1, 0, 3)
			f.killed(victim, "the step is reached")
			require.Empty(t, f.done())
			f.start(childSpec{Name: "next", Apply: true})
			f.eventually(func() bool { return len(f.done()) == 3 }, "all is handled")
			var reasons []string
			for d, err := range f.b.Read(ctxT(t), bus.ReadOptions{}) {
				require.NoError(t, err)
				if events.Extension(d.Event, events.ExtCausationID) != "" {
					p, err := events.Decode[events.NodeObserved](d.Event)
					require.NoError(t, err)
					reasons = append(reasons, p.Reason)
				}
			}
			require.Equal(t, []string{"1", "2", "3"}, reasons, "each event had one effect")
		})
	}
}

func TestAnEventThatKillsItsProcessIsSetAside(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.publish(1, 0, 1)
	for i := range 3 {
		// An attempt that is given up because the machine is busy would count, too.
		cmd := f.start(childSpec{Name: "try" + num(i), KillOn: "n0.0", AckWait: 4 * time.Second})
		f.killed(cmd, "attempt "+num(i+1))
	}
	f.start(childSpec{Name: "last", KillOn: "n0.0", AckWait: 4 * time.Second})
	eventually(t, func() bool { return len(recorded(t, f.b)) == 1 }, "the fourth process does not try it again")
	dl := deadLetters(t, f.b)[0]
	require.Equal(t, 3, dl.Attempts)
	require.Equal(t, "the process ended while its handler ran", dl.Reason)
	_, tried := f.find("last", "start")
	require.False(t, tried)
}

func TestAProcessThatIsToldToStopHandsItsMessageBack(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	first := f.start(childSpec{Name: "first", HoldAt: 1})
	f.publish(1, 0, 1)
	f.eventually(func() bool { _, ok := f.find("first", "holds"); return ok }, "it is in the middle of a message")
	require.NoError(t, first.Process.Signal(syscall.SIGTERM))
	// Its handler returns nil when its context ends: that is a result, and in time.
	require.NoError(t, first.Wait(), "it ends cleanly")
	f.eventually(func() bool {
		n, err := f.b.Pending(ctxT(t), events.HandlerProvisioning)
		return err == nil && n == 0
	}, "its message is settled")
}
