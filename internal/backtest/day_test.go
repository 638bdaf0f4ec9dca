package backtest

import (
	"cmp"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/bundle"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/config"
)

var (
	update   = flag.Bool("update", false, "rewrite the golden files")
	recordIt = flag.Bool("record", false, "record the day again")
)

// day records a day of a small cluster: decision's own code decides, nodes take
// different times to come and to go, and pods come, end and are evicted. It shares no
// code with the simulation of the backtest.
type day struct {
	*story
	random uint64
	ends   map[string]time.Time // of pods
	due    []step
	pods   int
}

// step is what is to become of a node.
type step struct {
	at   time.Time
	node string
	do   func()
}

func (d *day) roll(n int) int {
	d.random = d.random*6364136223846793005 + 1442695040888963407
	return int(d.random>>33) % n //nolint:gosec // 31 bits
}

func (d *day) after(seconds int, node string, do func()) {
	d.due = append(d.due, step{d.now.Add(time.Duration(seconds) * time.Second), node, do})
	slices.SortStableFunc(d.due, func(a, b step) int { return a.at.Compare(b.at) })
}

// tell publishes a snapshot, and acts on what is decided, until nothing more is.
func (d *day) tell() {
	for d.schedule(); ; d.schedule() {
		d.snapshot()
		if !d.act() {
			return
		}
	}
}

// act begins what was decided.
func (d *day) act() bool {
	acted := false
	for _, e := range d.decided {
		if e.Type() != events.TypeDecisionCheckpointed {
			d.append(e) // the checkpoint is there already
		}
		switch e.Type() {
		case events.TypeNodeClaimed:
			p, err := events.Decode[events.NodeClaimed](e)
			require.NoError(d.t, err)
			d.objects.Records = append(slices.Clone(d.objects.Records), events.NodeRecord{Name: p.Node, Pool: p.Pool, ClaimID: p.ClaimID, Phase: "claimed", Since: d.now, ClaimedAt: d.now})
			d.after(30+d.roll(25), p.Node, func() {
				d.objects.Records = slices.DeleteFunc(slices.Clone(d.objects.Records), func(r events.NodeRecord) bool { return r.Name == p.Node })
				d.ready(p.Node)
				d.change(p.Node, func(n *events.SnapshotNode, r *events.NodeRecord) {
					n.Labels[events.LabelClaim], r.ClaimID, r.ClaimedAt = p.ClaimID, p.ClaimID, p.ClaimedAt
				})
			})
			acted = true
		case events.TypeNodeDrainRequested:
			p, err := events.Decode[events.NodeDrainRequested](e)
			require.NoError(d.t, err)
			d.change(p.Node, func(n *events.SnapshotNode, r *events.NodeRecord) {
				n.Unschedulable = true
				r.Drain = &events.DrainRecord{Goal: p.Goal, Phase: "draining", RequestID: e.ID(), Since: d.now}
			})
			d.after(3+d.roll(5), p.Node, func() { d.empty(p.Node) })
			acted = true
		case events.TypeNodeDrainCancelled:
			p, err := events.Decode[events.NodeDrainCancelled](e)
			require.NoError(d.t, err)
			d.due = slices.DeleteFunc(d.due, func(s step) bool { return s.node == p.Node })
			d.change(p.Node, func(n *events.SnapshotNode, r *events.NodeRecord) {
				n.Unschedulable = false
				drain := *r.Drain
				drain.Phase = "done"
				r.Drain = &drain
			})
			acted = true
		}
	}
	d.decided = nil
	return acted
}

// empty evicts the pods of a node, which come again under other names.
func (d *day) empty(node string) {
	var moved []string
	for _, p := range slices.Clone(d.objects.Pods) {
		if p.Node == node {
			moved = append(moved, "ns/"+p.Name)
			end := d.ends[p.Name]
			delete(d.ends, p.Name)
			d.end(p.Name)
			d.come(p.Class, end)
		}
	}
	d.drained(node, moved...)
	d.change(node, func(_ *events.SnapshotNode, r *events.NodeRecord) { r.Phase = "removing" })
	d.after(4+d.roll(6), node, func() { d.removed(node) })
}

func (d *day) come(class string, end time.Time) {
	d.pods++
	name := fmt.Sprint("p", d.pods)
	var cpu int64
	_, err := fmt.Sscanf(class, "cpu-%d", &cpu)
	require.NoError(d.t, err)
	d.pod(name, "", cpu)
	d.ends[name] = end
}

// schedule binds pods that wait: to the emptiest node that has room.
func (d *day) schedule() {
	free := map[string]int64{}
	for _, n := range d.objects.Nodes {
		if !n.Unschedulable {
			free[n.Name] = n.Allocatable.CPUMilli
		}
	}
	cpu := map[string]int64{}
	for _, c := range d.objects.Classes {
		cpu[c.ID] = c.Requests.CPUMilli
	}
	for _, p := range d.objects.Pods {
		if _, ok := free[p.Node]; ok {
			free[p.Node] -= cpu[p.Class]
		}
	}
	for _, p := range slices.Clone(d.objects.Pods) {
		if p.Node != "" {
			continue
		}
		best := ""
		for _, n := range d.objects.Nodes {
			if f, ok := free[n.Name]; ok && f >= cpu[p.Class] && (best == "" || f > free[best]) {
				best = n.Name
			}
		}
		if best != "" {
			d.move(p.Name, best)
			free[best] -= cpu[p.Class]
		}
	}
}

// record makes the log of the day: from noon to noon, with few pods at night, more in
// office hours, and a batch every two hours.
func record(t testing.TB) memory {
	p := policy(func(p *events.Policy) {
		p.StaleAfter = events.Duration(3 * time.Minute)
		p.Pools[0].Max = 6
	})
	d := &day{story: begin(t, p), random: 1, ends: map[string]time.Time{}}
	d.act()
	for minute := 1; minute <= 24*60; minute++ {
		tick := noon.Add(time.Duration(minute) * time.Minute)
		for {
			next := tick
			var do func()
			wake := d.run.WakeAt()
			if len(d.due) > 0 && !d.due[0].at.After(next) {
				next = d.due[0].at
			}
			if !wake.IsZero() && wake.After(d.now) && wake.Before(next) {
				next = wake
				do = func() {
					d.say("bus", "", events.TimerFired{Handler: events.HandlerDecision, DueAt: wake})
					d.act()
				}
			} else if len(d.due) > 0 && d.due[0].at.Equal(next) {
				do, d.due = d.due[0].do, d.due[1:]
			} else {
				break
			}
			d.now = next
			do()
			d.tell()
		}
		d.now = tick
		for name, end := range d.ends {
			if !end.After(d.now) {
				d.end(name)
				delete(d.ends, name)
			}
		}
		hour := (minute/60 + 12) % 24
		want := 1
		if hour >= 8 && hour < 18 {
			want = 4
		}
		if d.roll(60) < want {
			d.come([]string{"cpu-300", "cpu-450", "cpu-600"}[d.roll(3)], d.now.Add(time.Duration(10+d.roll(60))*time.Minute))
		}
		if minute%120 == 60 {
			for range 4 {
				d.come("cpu-450", d.now.Add(time.Duration(6+d.roll(6))*time.Minute))
			}
		}
		if minute%60 == 0 {
			d.full()
			d.act()
		}
		d.tell()
	}
	return d.log
}

// recordedDay is the log in testdata.
func recordedDay(t testing.TB) *bundle.Reader {
	t.Helper()
	path := filepath.Join("testdata", "day.tar.zst")
	if *recordIt {
		require.NoError(t, os.RemoveAll(path))
		_, err := bundle.Export(t.Context(), bundle.ExportOptions{Log: whole{record(t)}, Path: path, Version: "test"})
		require.NoError(t, err)
		require.NoError(t, os.Chmod(path, 0o644)) //nolint:gosec // a test file
	}
	r, err := bundle.Open(path)
	require.NoError(t, err)
	return r
}

// candidate is a policy in testdata.
func candidate(t testing.TB, name string) Policy {
	t.Helper()
	c, err := config.LoadPolicy(filepath.Join("testdata", name))
	require.NoError(t, err)
	return Policy{Digest: name, Policy: c.Policy(home)}
}

// bare is a report without what is said of the differences: that is decision's to
// word, and to number.
func bare(r Report) Report {
	only := func(s *Said) *Said {
		if s == nil {
			return nil
		}
		return &Said{Stands: s.Stands, At: s.At, Decision: events.Decision{Pool: s.Decision.Pool, Verdict: s.Decision.Verdict, Delta: s.Decision.Delta, Nodes: s.Decision.Nodes,
			Reason: events.Reason{Code: s.Decision.Reason.Code}}}
	}
	r.Clusters = slices.Clone(r.Clusters)
	for i := range r.Clusters {
		c := &r.Clusters[i]
		c.First = slices.Clone(c.First)
		for j, d := range c.First {
			c.First[j].Simulated, c.First[j].Candidate = only(d.Simulated), only(d.Candidate)
		}
	}
	return r
}

func TestTwoPoliciesAreTriedOnARecordedDay(t *testing.T) {
	log := recordedDay(t)
	results := map[string]Cluster{}
	for _, name := range []string{"eager", "patient"} {
		r, err := Run(t.Context(), Options{Log: log, Policies: map[string]Policy{home: candidate(t, name+".yaml")}, Differences: 5})
		require.NoError(t, err)
		raw, err := json.MarshalIndent(bare(r), "", "  ")
		require.NoError(t, err)
		path := filepath.Join("testdata", name+".golden.json")
		if *update {
			require.NoError(t, os.WriteFile(path, append(raw, '\n'), 0o644)) //nolint:gosec // a test file
		}
		want, err := os.ReadFile(path)
		require.NoError(t, err)
		require.Equal(t, string(want), string(raw)+"\n")
		results[name] = r.Clusters[0]
	}
	eager, patient := results["eager"], results["patient"]
	require.Equal(t, eager.Recorded, patient.Recorded)
	require.Equal(t, eager.Simulated, patient.Simulated)
	// What is true of any such two policies, whatever the figures.
	require.Less(t, eager.Candidate.NodeHours, eager.Simulated.NodeHours)
	require.Less(t, eager.Simulated.NodeHours, patient.Candidate.NodeHours)
	require.Greater(t, eager.Candidate.PendingSeconds, patient.Candidate.PendingSeconds)
	require.GreaterOrEqual(t, eager.Candidate.Flaps+eager.Candidate.Regretted, patient.Candidate.Flaps+patient.Candidate.Regretted)
	// The error of the model, which these figures are to be read with.
	near := func(share, a, b float64) { require.InDelta(t, a, b, share*cmp.Or(a, 1)) }
	near(0.05, eager.Recorded.NodeHours, eager.Simulated.NodeHours)
	near(0.15, eager.Recorded.PendingSeconds, eager.Simulated.PendingSeconds)
	near(0.15, float64(eager.Recorded.Additions), float64(eager.Simulated.Additions))
}
