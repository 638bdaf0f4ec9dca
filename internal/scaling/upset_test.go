package scaling

import (
	"testing"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Three pods that spread over racks go to the only rack there is. A node of
// another rack, which they can't use, must not come before they are there.
func TestANodeThatWouldUpsetASpreadComesWhenThePodsAreThere(t *testing.T) {
	t.Parallel()
	gpu, plain := testPool("gpu"), testPool("plain")
	gpu.Labels, plain.Labels = map[string]string{"rack": "r1"}, map[string]string{"rack": "r2"}
	gpu.Size.Extended = map[string]int64{"gpu": 9}
	s := newSetup(t, gpu, plain)
	web := s.class("web", 600)
	web.Requests.Extended, web.Spread = map[string]int64{"gpu": 1}, spreadBy("rack", "web", 1)
	db := s.class("db", 500)
	db.NodeSelector = map[string]string{"rack": "r2"}
	s.pods("web", "", 3)
	waiting := s.pods("db", "", 1)
	r := s.evaluate()
	require.Equal(t, map[string]int{"gpu": 3}, grown(r))
	a := rejects(of(t, r, "plain"), "pod "+waiting.Ref(), "UpsetsSpread")
	require.NotNil(t, a, "%+v", of(t, r, "plain").Rejected)

	for _, c := range r.Claims {
		s.ready(c)
		s.bind("web", c.Node, 1)
	}
	require.Equal(t, map[string]int{"plain": 1}, grown(s.evaluate()))
}

func TestANodeThatTheSpreadPodsCanUseComesAtOnce(t *testing.T) {
	t.Parallel()
	x, y := testPool("x"), testPool("y")
	x.Labels, y.Labels = map[string]string{"rack": "r1"}, map[string]string{"rack": "r2"}
	s := newSetup(t, x, y)
	s.class("web", 600).Spread = []SpreadConstraint{{TopologyKey: "rack", MaxSkew: 1, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}}}
	s.class("db", 500).NodeSelector = map[string]string{"rack": "r2"}
	s.pods("web", "", 3)
	s.pods("db", "", 1)
	got := grown(s.evaluate())
	require.Equal(t, 4, got["x"]+got["y"])
}
