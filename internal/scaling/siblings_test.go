package scaling

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"pgregory.net/rapid"
)

// someNodes are up to six nodes of two pools with labels, taints and ages that few
// values can take, so that they often agree, some without a record or a Node.
func someNodes(t *rapid.T) (nodes []Node, records []Record) {
	pick := func(what string, of ...string) string { return rapid.SampledFrom(of).Draw(t, what) }
	for i := range 6 {
		name := fmt.Sprint("n", i)
		at := t0.Add(time.Duration(rapid.IntRange(0, 2).Draw(t, "age")) * time.Hour)
		if pick("there", "yes", "yes", "no") == "yes" {
			n := Node{Name: name, Ready: pick("ready", "yes", "yes", "no") == "yes", CreatedAt: at, Allocatable: Resources{CPUMilli: int64(rapid.IntRange(1, 3).Draw(t, "cores")), Pods: 9},
				Labels: map[string]string{corev1.LabelHostname: name, LabelCluster: pick("cluster", "c", "c", "d"), LabelClaim: "claim-" + name, "rack": pick("rack", "r1", "r1", name)}}
			if pick("labelled", "yes", "no") == "yes" {
				n.Labels["disk"] = "ssd"
			}
			for range rapid.IntRange(0, 2).Draw(t, "taints") {
				n.Taints = append(n.Taints, corev1.Taint{Key: pick("taint", "team", "node.kubernetes.io/x"), Value: pick("value", "a", "a", "b"), Effect: corev1.TaintEffectNoSchedule})
			}
			nodes = append(nodes, n)
		}
		if pick("recorded", "yes", "yes", "yes", "no") == "yes" {
			records = append(records, Record{Name: name, Pool: pick("pool", "a", "a", "b"), ClaimID: "claim-" + name, Phase: PhaseReady, ReadyAt: at})
		}
	}
	return nodes, records
}

// described is what an index knows of siblings and ages, for those who ask.
func described(x *Index) []string {
	x.world(State{}, Policy{})
	var out []string
	for _, pool := range []string{"a", "b"} {
		model, s := x.model(pool)
		if model == nil {
			out = append(out, pool+" has none")
			continue
		}
		out = append(out, fmt.Sprint(pool, " like ", model.name, s.nodes, s.agreedLabels(model), s.withAgreedTaints(nil, model)))
	}
	for _, e := range x.newestFirst() {
		out = append(out, e.name)
	}
	for _, r := range x.withoutNode() {
		out = append(out, "no node "+r.Name)
	}
	return out
}

func TestWhatSiblingsHaveInCommonFollowsTheChanges(t *testing.T) {
	t.Parallel()
	agreed := 0
	rapid.Check(t, func(rt *rapid.T) {
		var index *Index
		var before Observation
		for range rapid.IntRange(2, 8).Draw(rt, "steps") {
			now := Observation{Cluster: "c", Known: true}
			now.Nodes, now.Records = someNodes(rt)
			if index == nil {
				index = NewIndex(copyOf(now))
			} else {
				index.Apply(delta(before, copyOf(now)))
			}
			before = now
			if rapid.Bool().Draw(rt, "looked at") {
				require.Equal(rt, described(NewIndex(copyOf(now))), described(index))
				agreed++
			}
			// It is what a look at each of them gives.
			for _, pool := range []string{"a", "b"} {
				x := NewIndex(copyOf(now))
				w := x.world(State{}, Policy{})
				of := slices.DeleteFunc(slices.Clone(w.order), func(n *simNode) bool { return n.pool != pool || !n.owned || !n.node.Ready })
				model, s := x.model(pool)
				require.Equal(rt, len(of) > 0, model != nil)
				if model == nil {
					continue
				}
				for _, n := range of {
					require.False(rt, n.readyAt().After(model.readyAt()))
				}
				labels, taints := s.agreedLabels(model), s.withAgreedTaints(nil, model)
				for k, v := range model.labels {
					all := !slices.ContainsFunc(of, func(n *simNode) bool { return n.labels[k] != v || n.name == v }) && k != corev1.LabelHostname && k != LabelClaim
					require.Equal(rt, all, labels[k] == v, k)
				}
				for _, taint := range model.taints {
					all := !slices.ContainsFunc(of, func(n *simNode) bool { return !slices.Contains(n.taints, taint) }) && taint.Key == "team"
					require.Equal(rt, all, slices.Contains(taints, taint), taint)
				}
			}
		}
	})
	require.Positive(t, agreed)
}

func TestATaintThatAllNodesOfAPoolHaveIsExpectedOfANewOne(t *testing.T) {
	t.Parallel()
	s := newSetup(t)
	s.node("a", "a-1")
	s.node("a", "a-2")
	s.class("full", 1000)
	s.pods("full", "a-1", 1)
	s.pods("full", "a-2", 1)
	taint := []corev1.Taint{{Key: "team", Value: "x", Effect: corev1.TaintEffectNoSchedule}}
	s.nodeOf("a-1").Taints, s.nodeOf("a-2").Taints = taint, taint
	s.class("web", 500)
	s.pods("web", "", 1)
	r := s.evaluate()
	require.Empty(t, r.Claims)
	require.NotNil(t, rejects(only(t, r), "pod ns/web-002", "Taint"))
	s.nodeOf("a-1").Taints = nil
	require.Len(t, s.evaluate().Claims, 1)
}
