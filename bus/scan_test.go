package bus_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/bustest"
)

// Messages that came while the reader was busy wait in its own process: the
// server has none left to deliver.
func TestAReaderThatTakesLongerThanARequestMissesNothing(t *testing.T) {
	t.Parallel()
	server := bustest.Server(t)
	for i, out := 0, bustest.Open(t, server); i < 40; i++ {
		require.NoError(t, out.Publish(ctxT(t), observed(t, "home", "n1", "e"+num(i))))
	}
	b := bustest.Open(t, server, func(o *bus.Options) { o.Times.Request = shortRequest })
	var got []string
	for d, err := range b.Read(ctxT(t), bus.ReadOptions{}) {
		require.NoError(t, err)
		got = append(got, d.Event.ID())
		if len(got)%10 == 1 { // busy for longer than a request may take
			begin := time.Now()
			eventually(t, func() bool { return time.Since(begin) > shortRequest+100*time.Millisecond }, "time passes")
		}
	}
	require.Len(t, got, 40)
	require.Equal(t, []string{"e0", "e39"}, []string{got[0], got[39]})
}

func TestALimitBoundsWhatIsRead(t *testing.T) {
	t.Parallel()
	b := bustest.New(t)
	for i := range 30 {
		require.NoError(t, b.Publish(ctxT(t), observed(t, "home", "n1", "e"+num(i))))
	}
	for _, o := range []bus.ReadOptions{{Limit: 1}, {Limit: 7, Cluster: "home"}, {Limit: 29, Follow: true}, {Limit: 30}} {
		n := 0
		for _, err := range b.Read(ctxT(t), o) {
			require.NoError(t, err)
			n++
		}
		require.Equal(t, o.Limit, n)
	}
}
