package backtest

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// TestMovesAndAdditionsForNothing is worked out by hand, too.
//
//	10:00:00  nodes n1 and n2, of one core each, are Ready, n2 a minute later
//	12:00:00  on each is a pod of 300m: 30 % of it
//	12:05:00  n2, the newest, has been unneeded for 5 minutes; its pod fits on n1
//	12:05:04  the pod is on n1 (one eviction), as another one in the log
//	12:05:10  n2 is gone
//	12:20:00  an alert fires: a node is added, n3. It is lifted at 12:21:00
//	12:20:30  n3 is Ready, and no pod comes by 12:30:30: added for nothing
//	12:32:00  the log ends
//
// n1 is there all of the 32 minutes, n2 5 m 10 s, n3 12 minutes: 49 m 10 s, 2950 s.
//
// The simulation has the log's own delays: 30 s (n3), 4 s and 6 s (n2). n3 would go as
// unneeded: it is by 12:25:30, is 10 minutes old at 12:30:30, and an addition holds
// removals for 10 minutes, until 12:30:00. So at 12:30:30 it is drained in the
// simulation, 10 m 30 s after it was added (no flap), and gone at 12:30:40, still for
// nothing: it had no pod by then. It was there for 10 m 40 s: 47 m 50 s in all, 2870 s.
// In this log n3 stays: the story, unlike decision, keeps it.
//
// The other policy takes a node with 30 % for needed, and no alert for a reason: two
// nodes all the time, 64 minutes, 3840 s.
func TestMovesAndAdditionsForNothing(t *testing.T) {
	t.Parallel()
	s := begin(t, policy(), func(s *story) {
		s.node("n1", noon.Add(-2*time.Hour))
		s.node("n2", noon.Add(-119*time.Minute))
		s.pod("one", "n1", 300)
		s.pod("two", "n2", 300)
	})
	s.until(at(5, 0))
	s.draining("n2")
	s.until(at(5, 4))
	s.drained("n2", "ns/two")
	s.end("two")
	s.pod("three", "n1", 300)
	s.until(at(5, 9))
	s.now = at(5, 10)
	s.removed("n2")
	s.snapshot()
	s.until(at(20, 0))
	fire := events.AlertReceived{Status: events.AlertFiring, Fingerprint: "f", StartsAt: s.now, Labels: map[string]string{"alertname": "Busy"}, ReceivedAt: s.now, ExpiresAt: s.now.Add(time.Hour)}
	s.say("alerting", "", fire)
	s.claimed("n3")
	s.until(at(20, 30))
	s.ready("n3")
	s.until(at(21, 0))
	fire.Status, fire.EndsAt = events.AlertResolved, s.now
	s.say("alerting", "", fire)
	s.until(at(32, 0))

	c := s.try(policy(func(p *events.Policy) {
		p.Pools[0].UtilizationThreshold, p.AlertRules = 0.2, nil
	}))
	figures := func(seconds float64, f Figures) Figures {
		f.NodeHours = (time.Duration(seconds) * time.Second).Hours()
		f.Cost = f.NodeHours * 0.6
		f.Pools = []PoolFigures{{Pool: "a", NodeHours: f.NodeHours, Price: 0.6, Cost: f.Cost, Additions: f.Additions, Removals: f.Removals}}
		return f
	}
	require.Equal(t, figures(2950, Figures{Additions: 1, Removals: 1, Evictions: 1, Unused: 1}), c.Recorded)
	require.Equal(t, figures(2870, Figures{Additions: 1, Removals: 2, Evictions: 1, Unused: 1}), c.Simulated)
	require.Equal(t, figures(3840, Figures{}), c.Candidate)
}

// TestWhereTheMaximumIsLowerPodsWait is worked out by hand: three pods of 600m come at
// 12:01:00, each for a node of its own; the log has three nodes by 12:01:40, and the
// pods end at 12:06:40, when the log ends. 3 × 40 s of waiting.
//
// With at most one node, one pod waits 40 s, the two others until they end, 340 s each:
// 720 s; one node from 12:01:00 to the end, 340 s. The recorded policy: 3 × 340 s.
func TestWhereTheMaximumIsLowerPodsWait(t *testing.T) {
	t.Parallel()
	s := begin(t, policy())
	s.until(at(1, 0).Add(-every))
	s.now = at(1, 0)
	for i := range 3 {
		s.pod(fmt.Sprint("p", i), "", 600)
	}
	s.snapshot()
	for i := range 3 {
		s.claimed(fmt.Sprint("n", i))
	}
	s.until(at(1, 39))
	s.now = at(1, 40)
	for i := range 3 {
		s.ready(fmt.Sprint("n", i))
		s.move(fmt.Sprint("p", i), fmt.Sprint("n", i))
	}
	s.snapshot()
	s.until(at(6, 39))
	s.now = at(6, 40)
	for i := range 3 {
		s.end(fmt.Sprint("p", i))
	}
	s.snapshot()
	c := s.try(policy(func(p *events.Policy) { p.Pools[0].Max = 1 }))
	require.InDelta(t, 120, c.Recorded.PendingSeconds, 0)
	require.InDelta(t, 120, c.Simulated.PendingSeconds, 0)
	require.InDelta(t, 720, c.Candidate.PendingSeconds, 0)
	require.InDelta(t, 3*340./3600, c.Recorded.NodeHours, 1e-12)
	require.InDelta(t, 3*340./3600, c.Simulated.NodeHours, 1e-12)
	require.InDelta(t, 340./3600, c.Candidate.NodeHours, 1e-12)
	require.Equal(t, 1, c.Differences)
	require.Equal(t, 3, c.First[0].Simulated.Decision.Delta)
	require.Equal(t, 1, c.First[0].Candidate.Decision.Delta)
	require.Contains(t, fmt.Sprint(c.First[0].Candidate.Decision.Overruled), "of at most 1", "and says why not more")
}

// A recorded drain takes pods away and others come in their place. Where there was no
// such drain, they are the same pods, and nobody waits or moves.
func TestAPodInThePlaceOfAnEvictedOneIsTheSame(t *testing.T) {
	t.Parallel()
	for _, stateful := range []bool{false, true} {
		s := begin(t, policy(), func(s *story) {
			s.node("n1", noon.Add(-2*time.Hour))
			s.node("n2", noon.Add(-119*time.Minute))
			s.pod("one", "n1", 300)
			s.pod("two", "n2", 300)
		})
		s.until(at(5, 0))
		s.draining("n2")
		for i := range s.objects.Pods {
			if p := &s.objects.Pods[i]; p.Name == "two" {
				p.Deleting = true
			}
		}
		s.snapshot()
		next := "three"
		if stateful {
			next = "two"
			s.end("two")
		}
		s.pod(next, "", 300, func(p *events.SnapshotPod) { p.UID = "next" })
		s.until(at(5, 4))
		s.end("two")
		if stateful {
			s.pod(next, "", 300, func(p *events.SnapshotPod) { p.UID = "next" })
		}
		s.drained("n2", "ns/two")
		s.move(next, "n1")
		s.until(at(5, 9))
		s.now = at(5, 10)
		s.removed("n2")
		s.snapshot()
		s.until(at(8, 0))
		c := s.try(policy(func(p *events.Policy) { p.Pools[0].UtilizationThreshold = 0.2 }))
		require.Zero(t, c.Candidate.PendingSeconds)
		require.Zero(t, c.Candidate.Evictions)
		require.Zero(t, c.Candidate.Removals)
		require.InDelta(t, 2*8./60, c.Candidate.NodeHours, 1e-12)
		require.Equal(t, 1, c.Simulated.Evictions)
		require.Equal(t, 1, c.Recorded.Evictions)
	}
}

// Between two checkpoints, and with what a cluster goes through: a policy that changes,
// a node on its way and one that is being drained at the beginning, a snapshot that does
// not follow, DaemonSets.
func TestWhatIsUnderWayAtTheBeginningGoesOn(t *testing.T) {
	t.Parallel()
	s := begin(t, policy(), func(s *story) {
		s.node("n1", noon.Add(-2*time.Hour))
		s.node("n2", noon.Add(-2*time.Hour))
		s.pod("one", "n1", 600)
		s.objects.DaemonSets = []events.SnapshotDaemonSet{{Namespace: "kube-system", Name: "net", Class: events.PodClass{ID: "net", Namespace: "kube-system",
			Requests: events.Resources{CPUMilli: 50}, Tolerations: []events.Toleration{{Operator: "Exists"}}}}}
		s.change("n2", func(n *events.SnapshotNode, r *events.NodeRecord) {
			n.Unschedulable = true
			r.Drain = &events.DrainRecord{Goal: events.GoalRemove, Phase: "draining", RequestID: "r", Since: noon.Add(-2 * time.Second)}
		})
		s.objects.Records = append(s.objects.Records, events.NodeRecord{Name: "n3", Pool: "a", ClaimID: "claim-n3", Phase: "created", Since: noon.Add(-10 * time.Second), ClaimedAt: noon.Add(-20 * time.Second)})
	})
	s.until(at(0, 9))
	s.removed("n2")
	s.objects.Records = s.objects.Records[:1]
	s.until(at(0, 15))
	s.ready("n3")
	s.until(at(1, 0))
	s.say("app", "", events.ConfigApplied{Digest: "recorded-later", Previous: 1, Start: noon.Add(-time.Hour), Policy: policy(func(p *events.Policy) { p.Pools[0].Min = 1 })})
	s.fold = events.NewFold() // a delta of nobody knows what
	require.NoError(t, s.fold.Capture(events.SnapshotCaptured{Epoch: 1, Digest: events.NewFold().Digest(), CapturedAt: s.now}))
	s.snapshot()
	s.full()
	s.until(at(2, 0))
	c := s.try(policy())
	require.Equal(t, []string{"recorded-policy", "recorded-later"}, c.RecordedPolicies)
	// n1 120 s; n2, whose drain is over 5 s after its beginning, 3 s more and 5 s to its
	// end: 8 s; n3 120 s. In the log n2 is gone at 9 s.
	require.InDelta(t, 249./3600, c.Recorded.NodeHours, 1e-12)
	require.InDelta(t, 248./3600, c.Simulated.NodeHours, 1e-12)
	require.Zero(t, c.Simulated.Additions)
	require.Equal(t, 1, c.Simulated.Removals)
	require.Equal(t, 1, c.Recorded.Removals)
	require.Zero(t, c.Simulated.PendingSeconds)
	require.Equal(t, c.Simulated.NodeHours, c.Candidate.NodeHours)
}

func TestADryRunIsTriedAsIfSomebodyHadActed(t *testing.T) {
	t.Parallel()
	s := begin(t, policy())
	s.say("app", "", events.ConfigApplied{Digest: "dry", Previous: 1, DryRun: true, Start: noon.Add(-time.Hour), Policy: policy()})
	s.full()
	s.until(at(1, 0))
	s.pod("one", "", 600)
	s.until(at(3, 0))
	s.log = s.log[3:] // the checkpoint of the dry run is the first
	c := s.try(policy())
	require.Zero(t, c.Recorded.Additions)
	require.InDelta(t, 110, c.Recorded.PendingSeconds, 0, "from the snapshot at 12:01:10 on it waits without end")
	require.Equal(t, 1, c.Simulated.Additions)
	require.InDelta(t, 30, c.Simulated.PendingSeconds, 0, "the default from claim to Ready")
	require.Zero(t, c.Differences)
}

func TestTheReportIsTheSameByteForByte(t *testing.T) {
	t.Parallel()
	s := hour(t)
	var before []byte
	for range 5 {
		raw, err := json.Marshal(s.try(policy(func(p *events.Policy) { p.Pools[0].UtilizationThreshold = 0.9; p.Pools[0].Min = 1 })))
		require.NoError(t, err)
		if before != nil {
			require.Equal(t, string(before), string(raw))
		}
		before = raw
	}
}

func TestARangeBeginsWithTheLastCheckpointBeforeIt(t *testing.T) {
	t.Parallel()
	s := begin(t, policy())
	s.until(at(10, 0))
	s.full()
	s.until(at(20, 0))
	s.full()
	s.until(at(30, 0))
	for from, want := range map[time.Time]time.Time{{}: noon, noon.Add(-time.Hour): noon, at(9, 0): noon, at(10, 0): at(10, 0), at(25, 0): at(20, 0)} {
		c := s.try(policy(), func(o *Options) { o.From, o.Until = from, at(28, 0) })
		require.Equal(t, want, c.Since)
		require.Equal(t, at(27, 50), c.Until)
	}
}

func TestWhatCanNotBeTriedIsSaid(t *testing.T) {
	t.Parallel()
	s := begin(t, policy())
	_, err := Run(t.Context(), Options{Log: s.log})
	require.ErrorContains(t, err, "log and policies are required")
	_, err = Run(t.Context(), Options{Log: memory{}, Policies: map[string]Policy{home: {}}})
	require.ErrorIs(t, err, bus.ErrAbsent)
	_, err = Run(t.Context(), Options{Log: s.log, Policies: map[string]Policy{"edge": {}}})
	require.ErrorIs(t, err, ErrNoCheckpoint)
	require.ErrorContains(t, err, "edge")
	_, err = Run(t.Context(), Options{Log: s.log[1:], Policies: map[string]Policy{home: {}}})
	require.NoError(t, err, "the snapshot is there")
	_, err = Run(t.Context(), Options{Log: s.log[2:], Policies: map[string]Policy{home: {}}})
	require.ErrorIs(t, err, ErrNoCheckpoint, "its snapshot is not")
}

// TestADrainWaitsForJobs is worked out by hand: on n2, the newest of two nodes, runs a
// pod of a Job that ends at 12:07:00. At 12:05:00 the node has been unneeded for five
// minutes. Where the pool lets Jobs finish, it is cordoned, empty 5 s after the pod's
// end, and gone 5 s later: 430 s, and the other one's 600 s. Where it does not, the pod
// moves at 12:05:05, and the node is gone at 12:05:10: 310 s.
func TestADrainWaitsForJobs(t *testing.T) {
	t.Parallel()
	finish := func(p *events.Policy) { p.Pools[0].JobsDeadline = events.Duration(time.Hour) }
	s := begin(t, policy(finish), func(s *story) {
		s.node("n1", noon.Add(-2*time.Hour))
		s.node("n2", noon.Add(-119*time.Minute))
		s.pod("one", "n1", 300)
		s.pod("build", "n2", 300, func(p *events.SnapshotPod) { p.Owner.Kind = "Job" })
	})
	s.until(at(7, 0).Add(-every))
	s.now = at(7, 0)
	s.end("build")
	s.snapshot()
	s.until(at(10, 0))
	c := s.try(policy())
	require.InDelta(t, 1030./3600, c.Simulated.NodeHours, 1e-12)
	require.Zero(t, c.Simulated.Evictions)
	require.Equal(t, 1, c.Simulated.Removals)
	require.InDelta(t, 910./3600, c.Candidate.NodeHours, 1e-12)
	require.Equal(t, 1, c.Candidate.Evictions)

	// A wait has an end: with a deadline of a minute the pod moves at 12:06:05, and the
	// node is gone at 12:06:10.
	c = s.try(policy(func(p *events.Policy) { p.Pools[0].JobsDeadline = events.Duration(time.Minute) }))
	require.InDelta(t, (600+370.)/3600, c.Candidate.NodeHours, 1e-12)
	require.Equal(t, 1, c.Candidate.Evictions)
}
