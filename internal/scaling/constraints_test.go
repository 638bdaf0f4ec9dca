package scaling

import (
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func app(name string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{"app": name}}
}

func by(key, name string) []PodTerm { return []PodTerm{{TopologyKey: key, Selector: app(name)}} }

func spreadBy(key, name string, skew int32) []SpreadConstraint {
	return []SpreadConstraint{{TopologyKey: key, MaxSkew: skew, Selector: app(name)}}
}

const zone, host = corev1.LabelTopologyZone, corev1.LabelHostname

// zoned is a setup with a pool in each of the zones.
func zoned(t testing.TB, zones ...string) *setup {
	var pools []Pool
	for _, z := range zones {
		p := testPool("pool-" + z)
		p.Labels = map[string]string{zone: z}
		pools = append(pools, p)
	}
	return newSetup(t, pools...)
}

// grown counts the claims by pool.
func grown(r Result) map[string]int {
	out := map[string]int{}
	for _, c := range r.Claims {
		out[c.Pool]++
	}
	return out
}

func TestScaleUpFollowsTheConstraintsBetweenPods(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		zones []string
		build func(s *setup)
		want  map[string]int
		code  string // of a pod that stays without a node
	}{
		{"anti-affinity to itself by host: a node for each", []string{"x"}, func(s *setup) {
			s.class("web", 100).PodAntiAffinity = by(host, "web")
			s.pods("web", "", 3)
		}, map[string]int{"pool-x": 3}, ""},
		{"anti-affinity by host: room beside one of its kind is none", []string{"x"}, func(s *setup) {
			s.node("pool-x", "x-1")
			s.class("web", 100).PodAntiAffinity = by(host, "web")
			s.pods("web", "x-1", 1)
			s.pods("web", "", 1)
		}, map[string]int{"pool-x": 1}, ""},
		{"the anti-affinity of a running pod keeps others away", []string{"x"}, func(s *setup) {
			s.node("pool-x", "x-1")
			s.class("lonely", 100).PodAntiAffinity = by(host, "web")
			s.class("web", 100)
			s.pods("lonely", "x-1", 1)
			s.pods("web", "", 1)
		}, map[string]int{"pool-x": 1}, ""},
		{"anti-affinity by zone: one of two zones each, the third has none", []string{"x", "y"}, func(s *setup) {
			s.class("web", 100).PodAntiAffinity = by(zone, "web")
			s.pods("web", "", 3)
		}, map[string]int{"pool-x": 1, "pool-y": 1}, "PodAntiAffinity"},
		{"anti-affinity of another namespace does not select", []string{"x"}, func(s *setup) {
			s.node("pool-x", "x-1")
			s.class("web", 100).PodAntiAffinity = []PodTerm{{TopologyKey: host, Selector: app("web"), Namespaces: []string{"other"}}}
			s.pods("web", "x-1", 1)
			s.pods("web", "", 1)
		}, map[string]int{}, ""},
		{"a nil selector selects nobody", []string{"x"}, func(s *setup) {
			s.node("pool-x", "x-1")
			s.class("web", 100).PodAntiAffinity = []PodTerm{{TopologyKey: host}}
			s.pods("web", "x-1", 1)
			s.pods("web", "", 1)
		}, map[string]int{}, ""},
		{"affinity to a pod in a zone: that zone's pool", []string{"x", "y"}, func(s *setup) {
			s.node("pool-y", "y-1")
			s.class("db", 1000)
			s.class("web", 900).PodAffinity = by(zone, "db")
			s.pods("db", "y-1", 1)
			s.pods("web", "", 2)
		}, map[string]int{"pool-y": 2}, ""},
		{"affinity to nobody", []string{"x"}, func(s *setup) {
			s.class("web", 100).PodAffinity = by(zone, "db")
			s.pods("web", "", 1)
		}, map[string]int{}, "PodAffinity"},
		{"affinity to itself: the first goes anywhere, the rest to it", []string{"x", "y"}, func(s *setup) {
			s.class("web", 900).PodAffinity = by(zone, "web")
			s.pods("web", "", 3)
		}, map[string]int{"pool-x": 3}, ""},
		{"affinity to itself by host: what does not fit beside it stays", []string{"x"}, func(s *setup) {
			s.class("web", 400).PodAffinity = by(host, "web")
			s.pods("web", "", 3)
		}, map[string]int{"pool-x": 1}, "PodAffinity"},
		{"affinity to a smaller pod that is pending too", []string{"x"}, func(s *setup) {
			s.class("db", 100)
			s.class("web", 800).PodAffinity = by(host, "db")
			s.pods("db", "", 1)
			s.pods("web", "", 1)
		}, map[string]int{"pool-x": 1}, ""},
		{"affinity by a label that no node has", []string{"x"}, func(s *setup) {
			s.class("web", 100).PodAffinity = by("rack", "web")
			s.pods("web", "", 1)
		}, map[string]int{}, "TopologyKey"},
		{"spread over zones: even, though one pool is enough", []string{"x", "y"}, func(s *setup) {
			s.class("web", 100).Spread = spreadBy(zone, "web", 1)
			s.pods("web", "", 4)
			s.node("pool-x", "x-1")
			s.node("pool-y", "y-1")
			s.nodeOf("y-1").Unschedulable = true
		}, map[string]int{"pool-y": 1}, ""},
		{"spread over hosts", []string{"x"}, func(s *setup) {
			s.node("pool-x", "x-1")
			s.class("web", 300).Spread = spreadBy(host, "web", 1)
			s.pods("web", "x-1", 1)
			s.pods("web", "", 3)
		}, map[string]int{"pool-x": 1}, ""},
		{"spread over zones, of which none can have more", []string{"x"}, func(s *setup) {
			s.foreign("far", 0).Labels[zone] = "y"
			s.class("web", 100).Spread = spreadBy(zone, "web", 1)
			s.pods("web", "", 2)
		}, map[string]int{"pool-x": 1}, "TopologySpread"},
		{"spread honours the node selector: an excluded zone is no domain", []string{"x"}, func(s *setup) {
			s.foreign("far", 0).Labels[zone] = "y"
			c := s.class("web", 100)
			c.Spread, c.NodeSelector = spreadBy(zone, "web", 1), map[string]string{zone: "x"}
			s.pods("web", "", 2)
		}, map[string]int{"pool-x": 1}, ""},
		{"spread that ignores the node selector", []string{"x"}, func(s *setup) {
			s.foreign("far", 0).Labels[zone] = "y"
			c := s.class("web", 100)
			c.Spread, c.NodeSelector = spreadBy(zone, "web", 1), map[string]string{zone: "x"}
			c.Spread[0].IgnoreNodeAffinity = true
			s.pods("web", "", 2)
		}, map[string]int{"pool-x": 1}, "TopologySpread"},
		{"spread that honours taints: a tainted zone is no domain", []string{"x"}, func(s *setup) {
			far := s.foreign("far", 4000)
			far.Labels[zone], far.Taints = "y", []corev1.Taint{{Key: "t", Effect: corev1.TaintEffectNoSchedule}}
			s.class("web", 100).Spread = spreadBy(zone, "web", 1)
			s.obs.Classes[0].Spread[0].HonorTaints = true
			s.pods("web", "", 2)
		}, map[string]int{"pool-x": 1}, ""},
		{"fewer domains than minDomains: the lowest is 0", []string{"x"}, func(s *setup) {
			s.class("web", 100).Spread = spreadBy(zone, "web", 1)
			s.obs.Classes[0].Spread[0].MinDomains = 2
			s.pods("web", "", 2)
		}, map[string]int{"pool-x": 1}, "TopologySpread"},
		{"pods being deleted don't count for the spread", []string{"x"}, func(s *setup) {
			s.node("pool-x", "x-1")
			s.foreign("far", 0).Labels[zone] = "y"
			s.class("web", 100).Spread = spreadBy(zone, "web", 1)
			s.pods("web", "x-1", 1).Deleting = true
			s.pods("web", "", 1)
		}, map[string]int{}, ""},
		{"a host port is taken once a node", []string{"x"}, func(s *setup) {
			s.class("web", 100).HostPorts = []HostPort{{Port: 80}}
			s.pods("web", "", 3)
		}, map[string]int{"pool-x": 3}, ""},
		{"host ports of different protocols and addresses go together", []string{"x"}, func(s *setup) {
			s.node("pool-x", "x-1")
			s.class("tcp", 100).HostPorts = []HostPort{{Port: 80, IP: "10.0.0.1"}}
			s.class("udp", 100).HostPorts = []HostPort{{Port: 80, Protocol: "UDP"}}
			s.class("other", 100).HostPorts = []HostPort{{Port: 80, IP: "10.0.0.2"}}
			s.pods("tcp", "x-1", 1)
			s.pods("udp", "", 1)
			s.pods("other", "", 1)
		}, map[string]int{}, ""},
		{"a DaemonSet takes the host port on every new node", []string{"x"}, func(s *setup) {
			s.obs.DaemonSets = []DaemonSet{{Namespace: "kube-system", Name: "lb", Class: PodClass{ID: "lb", Namespace: "kube-system", HostPorts: []HostPort{{Port: 80}}}}}
			s.class("web", 100).HostPorts = []HostPort{{Port: 80}}
			s.pods("web", "", 1)
		}, map[string]int{}, "HostPort"},
		{"a volume in a zone: that zone's pool", []string{"x", "y"}, func(s *setup) {
			s.class("db", 100).Volumes = []VolumeTopology{{Kind: VolumeZone, Terms: in(zone, "y")}}
			s.pods("db", "", 1)
		}, map[string]int{"pool-y": 1}, ""},
		{"a volume on a node that is gone", []string{"x"}, func(s *setup) {
			s.class("db", 100).Volumes = []VolumeTopology{{Kind: VolumeNodeAffinity, Terms: in(host, "gone")}}
			s.pods("db", "", 1)
		}, map[string]int{}, "VolumeNodeAffinity"},
		{"an unbound claim that any node of two zones may have", []string{"w", "x", "y"}, func(s *setup) {
			s.class("db", 100).Volumes = []VolumeTopology{{Kind: VolumeAllowed, Terms: in(zone, "x", "y")}}
			s.pods("db", "", 1)
		}, map[string]int{"pool-x": 1}, ""},
		{"a claim that has to be bound first", []string{"x"}, func(s *setup) {
			s.class("db", 100)
			s.pods("db", "", 1).VolumeProblem = "claim data does not exist"
		}, map[string]int{}, "VolumeNotReady"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := zoned(t, c.zones...)
			c.build(s)
			res := s.evaluate()
			require.Equal(t, c.want, grown(res))
			codes := map[string]bool{}
			for _, d := range res.Decisions {
				for _, a := range d.Rejected {
					if !a.quiet {
						codes[a.Reason.Code] = true
						require.NotEmpty(t, a.Fix)
						require.NotEmpty(t, a.Reason.Message)
					}
				}
			}
			if c.code != "" {
				require.True(t, codes[c.code], "%v", res.Decisions)
			}
		})
	}
}

func in(key string, values ...string) []corev1.NodeSelectorTerm {
	return []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: key, Operator: corev1.NodeSelectorOpIn, Values: values}}}}
}
