package scaling

import (
	"fmt"
	"reflect"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// difference is what changed from one list of objects to the next, and the keys of
// those that are gone.
func difference[T any](before, after []T, key func(T) string) (changed []T, gone []string) {
	was, is := map[string]T{}, map[string]bool{}
	for _, o := range before {
		was[key(o)] = o
	}
	for _, o := range after {
		is[key(o)] = true
		if old, ok := was[key(o)]; !ok || !reflect.DeepEqual(old, o) {
			changed = append(changed, o)
		}
	}
	for _, o := range before {
		if !is[key(o)] {
			gone = append(gone, key(o))
		}
	}
	return changed, gone
}

// delta is how a snapshot tells that before became after.
func delta(before, after Observation) (Observation, map[string][]string) {
	d, gone := after, map[string][]string{}
	d.Nodes, gone[KindNode] = difference(before.Nodes, after.Nodes, func(n Node) string { return n.Name })
	d.Classes, gone[KindClass] = difference(before.Classes, after.Classes, func(c PodClass) string { return c.ID })
	d.Pods, gone[KindPod] = difference(before.Pods, after.Pods, Pod.Ref)
	d.Budgets, gone[KindBudget] = difference(before.Budgets, after.Budgets, func(b Budget) string { return b.Namespace + "/" + b.Name })
	d.DaemonSets, gone[KindDaemonSet] = difference(before.DaemonSets, after.DaemonSets, func(d DaemonSet) string { return d.Namespace + "/" + d.Name })
	d.Records, gone[KindRecord] = difference(before.Records, after.Records, func(r Record) string { return r.Name })
	d.Namespaces, gone[KindNamespace] = difference(before.Namespaces, after.Namespaces, func(n Namespace) string { return n.Name })
	return d, gone
}

// disturb changes what happen leaves alone.
func disturb(t *rapid.T, s *setup) {
	for i := range s.obs.Pods {
		p := &s.obs.Pods[i]
		switch rapid.IntRange(0, 12).Draw(t, "pod") {
		case 0:
			p.Deleting = !p.Deleting
		case 1:
			p.Phase = rapid.SampledFrom([]string{"Pending", "Running", "Succeeded"}).Draw(t, "phase")
		case 2:
			if len(s.obs.Nodes) > 0 {
				p.Node = rapid.SampledFrom([]string{"", "gone", s.obs.Nodes[0].Name}).Draw(t, "on")
				p.NominatedNode = rapid.SampledFrom([]string{"", s.obs.Nodes[0].Name}).Draw(t, "nominated")
			}
		}
	}
	switch rapid.IntRange(0, 9).Draw(t, "besides") {
	case 0:
		s.obs.DaemonSets = append(s.obs.DaemonSets, DaemonSet{Namespace: "kube-system", Name: fmt.Sprint("agent-", s.step), Class: PodClass{ID: "agent", Namespace: "kube-system",
			Requests: Resources{CPUMilli: 20, Extended: map[string]int64{ephemeralStorage: 1}}, HostPorts: []HostPort{{Port: 80}}}})
	case 1:
		s.obs.DaemonSets = nil
	case 2:
		s.obs.Budgets = append(s.obs.Budgets, Budget{Namespace: "ns", Name: fmt.Sprint("b-", s.step)})
	case 3:
		s.obs.Namespaces = append(s.obs.Namespaces, Namespace{Name: fmt.Sprint("ns-", s.step), Labels: map[string]string{"team": "a"}})
	case 4:
		c := &s.obs.Classes[rapid.IntRange(0, len(s.obs.Classes)-1).Draw(t, "class")]
		c.Requests.CPUMilli++
		c.Priority = rapid.SampledFrom([]int32{0, -20}).Draw(t, "priority")
	case 5:
		last := len(s.obs.Classes) - 1
		if last > 0 {
			s.obs.Classes = s.obs.Classes[:last:last]
		}
	case 6:
		for i := range s.obs.Nodes {
			s.obs.Nodes[i].Allocatable.Extended = map[string]int64{ephemeralStorage: rapid.Int64Range(1, 3).Draw(t, "disk")}
		}
	case 7:
		below := rapid.SampledFrom([]int32{-30, 5}).Draw(t, "expendable below")
		s.policy.ExpendableBelow = &below
	}
}

// What an index carries from one evaluation to the next changes nothing.
func TestAnIndexThatFollowsGivesTheSameBytesAsOneThatIsMadeAnew(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		s := draw(rt, t)
		var index *Index
		var before Observation
		for range rapid.IntRange(1, 25).Draw(rt, "steps") {
			happen(rt, s)
			if rapid.Bool().Draw(rt, "disturbed") {
				disturb(rt, s)
			}
			state := s.state
			want := s.evaluate()
			now := copyOf(s.obs)
			if rapid.Bool().Draw(rt, "namespaces known") {
				now.Freshness[KindNamespace] = s.now
				want = Evaluate(s.now, s.policy, state, now, testSeed(fmt.Sprint("event-", s.step)))
				s.state = want.State
			}
			if index == nil {
				index = NewIndex(copyOf(now))
			} else {
				index.Apply(delta(before, now))
			}
			before = now
			for range rapid.IntRange(1, 2).Draw(rt, "times") {
				got := Evaluate(s.now, s.policy, state, index.Observation(), testSeed(fmt.Sprint("event-", s.step)))
				require.Equal(rt, encode(t, want), encode(t, got))
			}
		}
	})
}

// copyOf is an observation whose objects nobody changes any more.
func copyOf(o Observation) Observation {
	o.Nodes, o.Classes, o.Pods = append([]Node(nil), o.Nodes...), append([]PodClass(nil), o.Classes...), append([]Pod(nil), o.Pods...)
	o.Records, o.Budgets, o.DaemonSets = append([]Record(nil), o.Records...), append([]Budget(nil), o.Budgets...), append([]DaemonSet(nil), o.DaemonSets...)
	for i := range o.Records {
		if d := o.Records[i].Drain; d != nil {
			o.Records[i].Drain = &DrainRecord{d.Goal, d.Phase, d.RequestID, d.Since}
		}
	}
	fresh := map[string]time.Time{}
	for k, v := range o.Freshness {
		fresh[k] = v
	}
	o.Freshness = fresh
	return o
}
