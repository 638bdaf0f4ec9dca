package bus_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/bustest"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/embedded"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// dataDir is a bus on a directory, whose data can be lost or put back.
type dataDir struct {
	t   *testing.T
	dir string
	k   killer
}

// with starts a server on the directory for the time of fn.
func (d *dataDir) with(fn func(bus.Options)) {
	d.t.Helper()
	s, err := embedded.Start(embedded.Options{Dir: d.dir})
	require.NoError(d.t, err)
	defer s.Shutdown()
	fn(bus.Options{Server: s, Times: bustest.Times(), MaxBytes: 64 << 20, OnStep: d.k.step})
}

// handles opens the bus, publishes events from (inclusive) to (exclusive) of one
// node, and lets a handler count them until its record has seen n.
func (d *dataDir) handles(from, to, n int) {
	d.t.Helper()
	d.with(func(o bus.Options) {
		b, err := bus.Open(ctxT(d.t), o)
		require.NoError(d.t, err)
		defer b.Close()
		st, err := bus.OpenState(ctxT(d.t), b, bus.StateOptions[counter]{Handler: events.HandlerProvisioning})
		require.NoError(d.t, err)
		stop := run(d.t, b, handler{events.HandlerProvisioning, func(ctx context.Context, del bus.Delivery) error {
			return st.Apply(ctx, del, func(turn *bus.Turn[counter]) error {
				turn.State.N++
				turn.State.Trail = append(turn.State.Trail, del.Event.ID())
				return nil
			})
		}})
		for i := from; i < to; i++ {
			require.NoError(d.t, b.Publish(ctxT(d.t), observed(d.t, "home", "n1", num(i))))
		}
		eventually(d.t, func() bool {
			r, _, err := st.Get(ctxT(d.t), bus.Key{Cluster: "home", Name: "n1"})
			return err == nil && r.State.N == n
		}, "everything is handled once")
		pending := func() bool { p, err := b.Pending(ctxT(d.t), events.HandlerProvisioning); return err == nil && p == 0 }
		eventually(d.t, pending, "everything is acknowledged")
		stop()
	})
}

// refused requires that a handler can't begin on what is there.
func (d *dataDir) refused(text string) {
	d.t.Helper()
	d.with(func(o bus.Options) {
		b, err := bus.Open(ctxT(d.t), o)
		if err == nil {
			defer b.Close()
			_, err = bus.OpenState(ctxT(d.t), b, bus.StateOptions[counter]{Handler: events.HandlerProvisioning})
			require.NoError(d.t, err)
			err = b.Run(ctxT(d.t), handler{events.HandlerProvisioning, func(context.Context, bus.Delivery) error {
				d.t.Error("it handles")
				return nil
			}})
		}
		require.ErrorIs(d.t, err, bus.ErrLost)
		require.ErrorContains(d.t, err, text)
		require.ErrorContains(d.t, err, "bus rebase")
	})
}

func (d *dataDir) rebase(dry bool) (r bus.Rebased) {
	d.t.Helper()
	d.with(func(o bus.Options) {
		var err error
		r, err = bus.Rebase(ctxT(d.t), o, bus.LogPosition{}, dry)
		require.NoError(d.t, err)
	})
	return r
}

// stream is where the server keeps the stream of record and its consumers.
func (d *dataDir) stream() string {
	d.t.Helper()
	found, err := filepath.Glob(filepath.Join(d.dir, "jetstream", "*", "streams", bus.StreamName))
	require.NoError(d.t, err)
	require.Len(d.t, found, 1)
	return found[0]
}

func TestALostLogIsReportedBeforeAnythingIsMadeAndARebaseGoesOnWithoutIt(t *testing.T) {
	t.Parallel()
	d := &dataDir{t: t, dir: t.TempDir()}
	d.handles(0, 5, 5)
	require.NoError(t, os.RemoveAll(d.stream()))
	for range 2 { // the second start finds no new stream either
		d.refused(bus.StreamName + " is gone")
	}

	dry := d.rebase(true)
	require.True(t, dry.Made)
	require.Equal(t, map[string]int{events.HandlerProvisioning: 1}, dry.Records)
	require.EqualValues(t, 5, dry.Known)
	d.refused(bus.StreamName + " is gone")

	d.with(func(o bus.Options) {
		d.k.dying(t, "rebase/declare/after", func() error { _, err := bus.Rebase(ctxT(t), o, bus.LogPosition{}, false); return err })
	})
	done := d.rebase(false)
	require.False(t, done.Made, "the killed one made it")
	require.Equal(t, dry.Records, done.Records)
	require.Equal(t, dry.Previous, done.Previous)
	require.Zero(t, done.Shared)
	again := d.rebase(false)
	require.Empty(t, again.Records)
	require.False(t, again.Made || again.Renamed)

	d.handles(5, 8, 8)
}

func TestALogFromAnOlderBackupIsReportedAndARebaseSkipsNoNewEvent(t *testing.T) {
	t.Parallel()
	d := &dataDir{t: t, dir: t.TempDir()}
	d.handles(0, 5, 5)
	backup := filepath.Join(t.TempDir(), "backup")
	require.NoError(t, os.CopyFS(backup, os.DirFS(d.stream())))
	d.handles(5, 9, 9)
	stream := d.stream()
	require.NoError(t, os.RemoveAll(stream))
	require.NoError(t, os.CopyFS(stream, os.DirFS(backup)))
	d.refused("it ends at sequence 5, and provisioning has handled sequence 9")

	r := d.rebase(false)
	require.True(t, r.Renamed)
	require.EqualValues(t, 5, r.Shared)
	require.EqualValues(t, 9, r.Known)
	require.NotEqual(t, r.Previous, r.Incarnation)
	require.True(t, d.rebase(false).Incarnation == r.Incarnation, "once is enough")

	// Sequences 6 to 9 are new events now, and each is handled.
	d.handles(9, 13, 13)
}

func TestARebaseRefusesWhileAProcessReads(t *testing.T) {
	t.Parallel()
	d := &dataDir{t: t, dir: t.TempDir()}
	d.with(func(o bus.Options) {
		b, err := bus.Open(ctxT(t), o)
		require.NoError(t, err)
		defer b.Close()
		stop := run(t, b, handler{events.HandlerProvisioning, func(context.Context, bus.Delivery) error { return nil }})
		defer stop()
		nc, err := o.Server.Connect()
		require.NoError(t, err)
		defer nc.Close()
		js, err := jetstream.New(nc)
		require.NoError(t, err)
		eventually(t, func() bool {
			c, err := js.Consumer(ctxT(t), bus.StreamName, events.HandlerProvisioning+"-0")
			return err == nil && c.CachedInfo().NumWaiting > 0
		}, "it pulls")
		_, err = bus.Rebase(ctxT(t), o, bus.LogPosition{}, false)
		require.ErrorContains(t, err, "stop every process first")
	})
}
