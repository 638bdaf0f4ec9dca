package scaling

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestNamespacesAreSelectedByTheirLabelsWhenThoseAreKnown(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		team  string
		known bool
		want  int
		code  string
	}{{"red", true, 1, ""}, {"blue", true, 0, ""}, {"red", false, 0, "ConstraintNotSimulated"}} {
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			t.Parallel()
			s := newSetup(t)
			s.frozen = true
			s.obs.CapturedAt, s.obs.Freshness = s.now, map[string]time.Time{}
			for _, k := range append(removalKinds, KindNamespace) {
				s.obs.Freshness[k] = s.now
			}
			if !c.known {
				delete(s.obs.Freshness, KindNamespace)
			}
			s.obs.Namespaces = []Namespace{{Name: "ns", Labels: map[string]string{"team": c.team}}}
			s.node("a", "a-1")
			s.class("web", 100)
			s.class("shy", 100).PodAntiAffinity = []PodTerm{{TopologyKey: host, Selector: &metav1.LabelSelector{},
				NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"team": "red"}}}}
			s.pods("web", "a-1", 1)
			s.pods("shy", "", 1)
			res := s.evaluate()
			require.Len(t, res.Claims, c.want)
			if c.code != "" {
				require.NotNil(t, rejects(only(t, res), "pod ns/shy-001", c.code))
			}
		})
	}
}

func TestExpendablePodsGiveWayExceptToThoseThatNeverPreempt(t *testing.T) {
	t.Parallel()
	below := int32(0)
	for _, c := range []struct {
		name  string
		below *int32
		prio  int32
		never bool
		want  int
	}{
		{"the default cutoff", nil, -11, false, 0},
		{"at the default cutoff a pod stays", nil, -10, false, 1},
		{"a cutoff of the policy", &below, -1, false, 0},
		{"one that never preempts", nil, -11, true, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newSetup(t)
			s.policy.ExpendableBelow = c.below
			s.node("a", "a-1")
			s.class("filler", 900).Priority = c.prio
			s.class("web", 900).NeverPreempts = c.never
			s.pods("filler", "a-1", 1)
			s.pods("web", "", 1)
			require.Len(t, s.evaluate().Claims, c.want)
		})
	}
}

func TestAPodNominatedToALeavingNodeLooksForAnotherPlace(t *testing.T) {
	t.Parallel()
	s := newSetup(t)
	s.node("a", "a-1")
	s.record("a-1").Phase = PhaseRemoving
	s.class("web", 900)
	s.pods("web", "", 1).NominatedNode = "a-1"
	require.Len(t, s.evaluate().Claims, 1)
}

func TestANodeStaysWhenItsPodsMayNotGoBesideOthers(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		code  string // in the message; empty: it goes
		build func(s *setup)
	}{
		{"nothing keeps it", "", func(s *setup) { s.class("web", 100) }},
		{"anti-affinity", "PodAntiAffinity on 1", func(s *setup) { s.class("web", 100).PodAntiAffinity = by(host, "web") }},
		{"the anti-affinity of another", "PodAntiAffinityOfOthers on 1", func(s *setup) {
			s.class("web", 100)
			s.class("lonely", 600).PodAntiAffinity = by(host, "web")
			s.pods("lonely", "a-1", 1)
		}},
		{"affinity to what stays elsewhere", "PodAffinity on 1", func(s *setup) {
			s.class("web", 100).PodAffinity = by("rack", "db")
			s.class("db", 100)
			s.foreign("far", 0).Labels["rack"] = "r"
			s.pods("db", "far", 1)
			s.nodeOf("a-1").Labels["rack"], s.nodeOf("a-2").Labels["rack"] = "q", "r"
		}},
		{"affinity to what moves along", "", func(s *setup) {
			s.class("web", 200).PodAffinity = by(host, "db")
			s.class("db", 100)
			s.pods("db", "a-2", 1)
		}},
		{"host ports", "HostPort on 1", func(s *setup) { s.class("web", 100).HostPorts = []HostPort{{Port: 80}} }},
		{"spread over zones", "TopologySpread on 1", func(s *setup) {
			s.class("web", 100).Spread = spreadBy("rack", "web", 1)
			s.foreign("far", 0).Labels["rack"] = "q"
			s.nodeOf("a-1").Labels["rack"], s.nodeOf("a-2").Labels["rack"] = "p", "q"
		}},
		{"spread over hosts, of which the leaving one is none any more", "", func(s *setup) { s.class("web", 100).Spread = spreadBy(host, "web", 1) }},
		{"a volume of the node", "VolumeNodeAffinity on 1", func(s *setup) {
			s.class("web", 100)
			s.class("db", 100).Volumes = []VolumeTopology{{Kind: VolumeNodeAffinity, Terms: in(host, "a-2")}}
			s.pods("db", "a-2", 1)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newSetup(t)
			s.pool("a").Unneeded, s.pool("a").Stabilization = 0, 0
			s.policy.StartupGrace = 0
			s.node("a", "a-1")
			s.node("a", "a-2")
			c.build(s)
			s.class("big", 500) // keeps a-1 above the threshold
			s.pods("big", "a-1", 1)
			s.pods("web", "a-1", 1)
			s.pods("web", "a-2", 1)
			s.evaluate()
			s.now = s.now.Add(10 * time.Second)
			res := s.evaluate()
			if c.code == "" {
				require.Equal(t, []string{"a-2"}, drained(res), "%+v", only(t, res).Rejected)
				return
			}
			require.Empty(t, drained(res))
			a := rejects(only(t, res), "node a-2", "NoOtherNodeFits")
			require.NotNil(t, a, "%+v", only(t, res).Rejected)
			require.Contains(t, a.Reason.Message, c.code)
		})
	}
}
