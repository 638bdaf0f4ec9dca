package scaling

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// An expendable pod gives way on its own node and only there: until it does, it
// repels, attracts and is counted like any other.
func TestExpendablePodsCountUntilTheyGiveWay(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		build func(s *setup, spare, web *PodClass)
		want  int
		code  string
	}{
		{"its anti-affinity by zone keeps others off other nodes", func(s *setup, spare, _ *PodClass) {
			spare.PodAntiAffinity = by(zone, "web")
			s.pods("full", "srv", 1)
		}, 0, "PodAntiAffinityOfOthers"},
		{"its anti-affinity by host gives way with it", func(_ *setup, spare, _ *PodClass) { spare.PodAntiAffinity = by(host, "web") }, 0, ""},
		{"but not to a pod that never preempts", func(_ *setup, spare, web *PodClass) {
			spare.PodAntiAffinity, web.NeverPreempts = by(host, "web"), true
		}, 1, ""},
		{"who goes to it does not push it off", func(s *setup, _, web *PodClass) {
			web.PodAffinity = by(host, "spare")
			s.pods("most", "srv", 1)
		}, 0, "PodAffinity"},
		{"who goes to it finds it", func(_ *setup, _, web *PodClass) { web.PodAffinity = by(host, "spare") }, 0, ""},
		{"who goes to its own kind pushes it off and is the first", func(s *setup, spare, web *PodClass) {
			spare.Labels, web.PodAffinity = web.Labels, by(host, "web")
			s.pods("most", "srv", 1)
		}, 0, ""},
		{"who goes to its own kind goes nowhere else", func(s *setup, spare, web *PodClass) {
			spare.Labels, web.PodAffinity = web.Labels, by(host, "web")
			s.pods("full", "srv", 1)
		}, 0, "PodAffinity"},
		{"a spread counts it", func(s *setup, spare, web *PodClass) {
			spare.Labels, web.Spread = web.Labels, spreadBy("rack", "web", 1)
			s.nodeOf("srv").Labels["rack"] = "r"
			s.foreign("far", 0).Labels["rack"] = "q"
			s.pool("a").Labels["rack"] = "r"
			s.pods("full", "srv", 1)
		}, 0, "TopologySpread"},
		{"its host port gives way with it", func(_ *setup, spare, web *PodClass) {
			spare.HostPorts, web.HostPorts = []HostPort{{Port: 80}}, []HostPort{{Port: 80}}
		}, 0, ""},
		{"its host port is taken for a pod that never preempts", func(_ *setup, spare, web *PodClass) {
			spare.HostPorts, web.HostPorts, web.NeverPreempts = []HostPort{{Port: 80}}, []HostPort{{Port: 80}}, true
		}, 1, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newSetup(t)
			s.pool("a").Labels = map[string]string{zone: "z"}
			s.foreign("srv", 1000).Labels[zone] = "z"
			s.class("full", 1000)
			s.class("most", 600)
			s.class("spare", 200)
			s.class("web", 300)
			class := func(id string) *PodClass {
				for i := range s.obs.Classes {
					if s.obs.Classes[i].ID == id {
						return &s.obs.Classes[i]
					}
				}
				return nil
			}
			class("spare").Priority = -20
			s.pods("spare", "srv", 1)
			c.build(s, class("spare"), class("web"))
			waiting := s.pods("web", "", 1)
			r := s.evaluate()
			require.Len(t, r.Claims, c.want)
			a := rejects(only(t, r), "pod "+waiting.Ref(), c.code)
			require.Equal(t, c.code != "", a != nil, "%+v", only(t, r).Rejected)
		})
	}
}
