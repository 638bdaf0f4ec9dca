package scaling

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/scaling/evictable"
)

// farm is a pool whose node a-2 runs a Job that may not be evicted.
func farm(t *testing.T) *setup {
	t.Helper()
	s := idle(t, "a-1", "a-2")
	s.pool("a").JobsDeadline = 2 * time.Hour
	s.class("keep", 600)
	s.pods("keep", "a-1", 1)
	s.class("build", 100)
	p := s.pods("build", "a-2", 1)
	p.OwnerKind, p.Annotations = kindJob, map[string]string{evictable.SafeToEvict: "false"}
	p.LocalStorage = []LocalVolume{{Name: "workspace", Kind: evictable.EmptyDir}}
	s.obs.Budgets = []Budget{{Namespace: "ns", Name: "build", Selector: metav1.LabelSelector{MatchLabels: map[string]string{"app": "build"}}}}
	return s
}

func TestAJobThatMayEndByItselfIsNoReasonAgainstARemoval(t *testing.T) {
	t.Parallel()
	s := farm(t)
	r := s.until(10 * time.Minute)
	require.Equal(t, []string{"a-2"}, drained(r))
	require.Equal(t, 2*time.Hour, r.Drains[0].JobsDeadline)

	for name, edit := range map[string]func(s *setup){
		"the pool evicts Jobs":        func(s *setup) { s.pool("a").JobsDeadline = 0 },
		"it is of something else":     func(s *setup) { s.obs.Pods[1].OwnerKind = "ReplicaSet" },
		"it would fit nowhere":        func(s *setup) { s.obs.Classes[1].Requests.CPUMilli = 450 },
		"another pod may not go":      func(s *setup) { s.pods("build", "a-2", 1) },
		"the node is to be let alone": func(s *setup) { s.policy.ProtectedNodes = []string{"a-2"} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := farm(t)
			edit(s)
			require.Empty(t, s.pass(20*time.Minute))
		})
	}
}

func TestANodeThatWaitsForJobsIsNeededAgain(t *testing.T) {
	t.Parallel()
	s := farm(t)
	require.Equal(t, []string{"a-2"}, drained(s.until(10*time.Minute)))
	s.record("a-2").Drain = &DrainRecord{Goal: GoalRemove, Phase: DrainFinishing, RequestID: "r"}
	require.Empty(t, s.pass(30*time.Minute), "it waits for as long as it takes")
	require.Equal(t, CodeRemovalsInFlight, only(t, s.evaluate()).Reason.Code)
	s.class("big", 700)
	s.pods("big", "", 1)
	s.now = s.now.Add(10 * time.Second)
	r := s.evaluate()
	require.Equal(t, []string{"a-2"}, cancelled(r))
	require.Empty(t, r.Claims)
}

func TestOnlyAPersonWhoInsistsDoesNotWaitForJobs(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		action   string
		override bool
		want     time.Duration
	}{
		{ActionRemove, false, 2 * time.Hour}, {ActionDrain, false, 2 * time.Hour},
		{ActionRemove, true, 0}, {ActionDrain, true, 0}, {ActionCordon, false, 0},
	} {
		s := farm(t)
		s.request(Request{Action: c.action, Node: "a-2", Override: c.override})
		r := s.evaluate()
		require.Len(t, r.Drains, 1, c)
		require.Equal(t, c.want, r.Drains[0].JobsDeadline, c)
	}
}
