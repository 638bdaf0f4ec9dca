package bus_test

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// forgetful makes the server recognise a second publication for hardly longer
// than it takes, as if everything below took more than the ten minutes.
func (f *fleet) forgetful() {
	f.t.Helper()
	js := f.admin()
	for _, name := range []string{bus.StreamName, bus.DeadLetterStream} {
		s, err := js.Stream(ctxT(f.t), name)
		require.NoError(f.t, err)
		cfg := s.CachedInfo().Config
		cfg.Duplicates = 100 * time.Millisecond
		_, err = js.UpdateStream(ctxT(f.t), cfg)
		require.NoError(f.t, err)
	}
}

func (f *fleet) admin() jetstream.JetStream {
	f.t.Helper()
	nc, err := f.server.Connect(nats.Token(token))
	require.NoError(f.t, err)
	f.t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	require.NoError(f.t, err)
	return js
}

// forgotten waits until the server recognises nothing any more that was published
// before: it forgets in the order of publication, so that a message of now is the
// last. No process may run meanwhile.
func (f *fleet) forgotten() {
	f.t.Helper()
	probe := bulky(f.t, "home", "probe")
	grows := func() bool {
		before, err := f.b.LogState(ctxT(f.t))
		require.NoError(f.t, err)
		require.NoError(f.t, f.b.Publish(ctxT(f.t), probe))
		after, err := f.b.LogState(ctxT(f.t))
		require.NoError(f.t, err)
		return after.Last > before.Last
	}
	require.True(f.t, grows())
	eventually(f.t, grows, "the events of before are forgotten")
	js := f.admin()
	dead, err := js.Stream(ctxT(f.t), bus.DeadLetterStream)
	require.NoError(f.t, err)
	stored := func() bool {
		ack, err := js.Publish(ctxT(f.t), "k3sas-dead.nobody.home.probe", nil, jetstream.WithMsgID("probe"))
		require.NoError(f.t, err)
		if !ack.Duplicate {
			require.NoError(f.t, dead.DeleteMsg(ctxT(f.t), ack.Sequence))
		}
		return !ack.Duplicate
	}
	require.True(f.t, stored())
	eventually(f.t, stored, "the dead letters of before are forgotten")
}

// order returns the events that were done, in the order in which they were.
func (f *fleet) order() (out []string) {
	for _, l := range f.lines() {
		if l.what == "done" {
			out = append(out, l.event)
		}
	}
	return out
}

// parkedFleet is a fleet without processes, with the events 0 to 3 of n0 among
// the dead letters.
func parkedFleet(t *testing.T) *fleet {
	f := newFleet(t)
	f.forgetful()
	first := f.start(childSpec{Name: "first", Shut: "n0.0"})
	f.publish(1, 0, 4)
	f.eventually(func() bool { return len(deadLetters(t, f.b)) == 4 && len(recorded(t, f.b)) == 4 }, "all are set aside")
	require.NoError(t, first.Process.Signal(syscall.SIGTERM))
	require.NoError(t, first.Wait())
	return f
}

func TestKilledAtEachStepARedriveLosesAndDoublesNothing(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		step string
		nth  int
	}{
		{"redrive/begun", 1}, {"redrive/copied", 1}, {"redrive/deleted", 1}, {"redrive/copied", 3}, {"redrive/deleted", 4},
		{"redrive/closed", 1}, {"redrive/unparked", 1},
	} {
		t.Run(strings.ReplaceAll(c.step, "/", "_")+"_"+num(c.nth), func(t *testing.T) {
			t.Parallel()
			f := parkedFleet(t)
			redrive(t, f.b, "n0", "r1")
			victim := f.start(childSpec{Name: "victim", KillAt: "provisioning/" + c.step, KillNth: c.nth})
			f.killed(victim, "the step is reached")
			f.publish(1, 4, 6)
			f.forgotten()
			f.start(childSpec{Name: "next"})
			f.eventually(func() bool { return len(f.done()) == 6 && len(parkedKeys(t, f.b)) == 0 }, "all is handled")
			require.Equal(t, []string{"n0.0", "n0.1", "n0.2", "n0.3", "n0.4", "n0.5"}, f.order(), "in order, each once")
			require.Empty(t, deadLetters(t, f.b))
			copies := map[string]int{}
			for d, err := range f.b.Read(ctxT(t), bus.ReadOptions{Types: []string{events.TypeNodeObserved}}) {
				require.NoError(t, err)
				if d.Redrive.Handler != "" {
					copies[d.Event.ID()]++
				}
			}
			for id, n := range copies {
				require.Equal(t, 1, n, "copies of %s", id)
			}
			require.Subset(t, copies, map[string]int{"n0.0": 1, "n0.1": 1, "n0.2": 1, "n0.3": 1})
			require.Empty(t, said[events.DeadletterRequestRefused](t, f.b))
			rounds := said[events.DeadletterRedriven](t, f.b)
			require.Equal(t, 4, rounds[0].Count)
		})
	}
}

func TestKilledAtEachStepADropIsCarriedOutOnce(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"drop/recorded", "drop/deleted", "drop/unparked"} {
		t.Run(strings.ReplaceAll(step, "/", "_"), func(t *testing.T) {
			t.Parallel()
			f := parkedFleet(t)
			var ids []string
			for _, dl := range deadLetters(t, f.b) {
				ids = append(ids, dl.ID)
			}
			drop(t, f.b, "n0", "d1", ids...)
			victim := f.start(childSpec{Name: "victim", KillAt: "provisioning/" + step})
			f.killed(victim, "the step is reached")
			f.forgotten()
			f.publish(1, 4, 5)
			f.start(childSpec{Name: "next"})
			f.eventually(func() bool { return len(f.done()) == 1 && len(parkedKeys(t, f.b)) == 0 }, "the node goes on")
			require.Equal(t, []string{"n0.4"}, f.order())
			require.Empty(t, deadLetters(t, f.b))
			out := said[events.DeadletterDropped](t, f.b)
			require.Len(t, out, 1)
			require.Len(t, out[0].Letters, 4)
			require.True(t, out[0].Unparked)
			require.Empty(t, said[events.DeadletterRequestRefused](t, f.b))
		})
	}
}

func TestKilledWhileItSetsAsideAnEventItIsNotHandledAfterAll(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"park/after", "bury/after"} {
		t.Run(strings.ReplaceAll(step, "/", "_"), func(t *testing.T) {
			t.Parallel()
			f := newFleet(t)
			f.publish(1, 0, 2)
			victim := f.start(childSpec{Name: "victim", Shut: "n0.0", KillAt: "provisioning/" + step})
			f.killed(victim, "the step is reached")
			// This one would handle it: then the event had both an effect and a dead letter.
			f.start(childSpec{Name: "next"})
			f.eventually(func() bool { return len(recorded(t, f.b)) == 2 }, "both are set aside")
			require.Empty(t, f.done())
			dls := deadLetters(t, f.b)
			require.Len(t, dls, 2)
			require.Equal(t, "shut", dls[0].Reason)
			require.Equal(t, 1, dls[0].Attempts)
			require.Contains(t, dls[1].Reason, "parked behind dead letter "+dls[0].ID)
			redrive(t, f.b, "n0", "r1")
			f.eventually(func() bool { return len(f.done()) == 2 }, "a redrive brings them back")
			require.Equal(t, []string{"n0.0", "n0.1"}, f.order())
		})
	}
}
