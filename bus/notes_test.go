package bus_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/bustest"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

func TestNotesAreChangedByWhoeverKnowsThem(t *testing.T) {
	t.Parallel()
	b := bustest.New(t)
	n, err := bus.OpenNotes(ctxT(t), b, events.HandlerProvisioning)
	require.NoError(t, err)
	const name = "group a.b/c d" // any name will do
	raw, rev, err := n.Load(ctxT(t), "home", name)
	require.NoError(t, err)
	require.Empty(t, raw)
	require.Zero(t, rev)
	require.NoError(t, n.Save(ctxT(t), "home", name, []byte("one"), 0))
	require.ErrorIs(t, n.Save(ctxT(t), "home", name, []byte("late"), 0), bus.ErrConflict)
	raw, rev, err = n.Load(ctxT(t), "home", name)
	require.NoError(t, err)
	require.Equal(t, "one", string(raw))
	require.NoError(t, n.Save(ctxT(t), "home", name, []byte("two"), rev))
	require.ErrorIs(t, n.Save(ctxT(t), "home", name, []byte("late"), rev), bus.ErrConflict)
	raw, _, err = n.Load(ctxT(t), "home", name)
	require.NoError(t, err)
	require.Equal(t, "two", string(raw))
	for _, bad := range [][2]string{{"Not A Label", "x"}, {"home", ""}} {
		_, _, err = n.Load(ctxT(t), bad[0], bad[1])
		require.Error(t, err)
		require.Error(t, n.Save(ctxT(t), bad[0], bad[1], nil, 0))
	}
	_, err = bus.OpenNotes(ctxT(t), b, "Not A Label")
	require.ErrorContains(t, err, "expected a DNS label")

	// A handler's records are what they were.
	st, err := bus.OpenState(ctxT(t), b, bus.StateOptions[counter]{Handler: events.HandlerProvisioning})
	require.NoError(t, err)
	all, err := st.All(ctxT(t))
	require.NoError(t, err)
	require.Empty(t, all)
}
