package scaling

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestADecisionNamesThePodsThatGetNoNodeAndSaysItOfEachOnce(t *testing.T) {
	t.Parallel()
	s := newSetup(t)
	s.pool("a").Max = 1
	s.node("a", "a-1")
	s.class("web", 1000)
	s.class("huge", 5000)
	s.pods("web", "a-1", 1)
	s.pods("web", "", 2)
	s.pods("huge", "", 2)
	d := only(t, s.evaluate())
	require.True(t, d.Changed)
	by := map[string]Alternative{}
	for _, a := range d.Rejected {
		if strings.HasPrefix(a.Subject, "node ") {
			require.Empty(t, a.Pods)
			continue
		}
		require.Len(t, a.Pods, 2)
		require.Equal(t, "pod "+a.Pods[0], a.Subject)
		by[a.Reason.Code] = a
	}
	require.Equal(t, "would fit on a new node, but pool a has 1 node, claims in flight and leaving nodes included, of at most 1", by[CodeAtMax].Reason.Message)
	require.Equal(t, "raise max of pool a above 1", by[CodeAtMax].Fix)
	require.Contains(t, by["InsufficientCPU"].Reason.Message, "5")

	pass := func(d time.Duration) bool {
		s.now = s.now.Add(d)
		return only(t, s.evaluate()).Changed
	}
	require.False(t, pass(newcomersEvery), "nothing is new")
	s.pods("web", "", 1)
	require.True(t, pass(0), "a pod came of which it was not said yet")
	s.pods("web", "", 1)
	require.False(t, pass(newcomersEvery-time.Second), "another one, too soon")
	require.True(t, pass(time.Second))
	last := s.obs.Pods[len(s.obs.Pods)-1]
	s.obs.Pods = s.obs.Pods[:len(s.obs.Pods)-1]
	require.False(t, pass(newcomersEvery), "that one is gone is not worth saying")
	s.obs.Pods = append(s.obs.Pods, last)
	require.True(t, pass(0), "it is back")
}

func TestADecisionNamesNoMorePodsThanFit(t *testing.T) {
	t.Parallel()
	s := newSetup(t)
	for i := range 4 {
		class := fmt.Sprint("huge-", i)
		s.class(class, 5000+int64(i))
		s.pods(class, "", 20)
	}
	d := only(t, s.evaluate())
	named := 0
	for _, a := range d.Rejected {
		named += len(a.Pods)
	}
	require.Equal(t, maxNamed, named)
	s.now = s.now.Add(time.Second)
	require.False(t, only(t, s.evaluate()).Changed)
}
