package evictable

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func codes(rs []Reason) []string {
	var out []string
	for _, r := range rs {
		out = append(out, r.Code)
	}
	return out
}

func TestAPodIsKeptForWhatWouldBeLostOrIsForbidden(t *testing.T) {
	t.Parallel()
	tmp, data := Volume{"tmp", EmptyDir}, Volume{"data", "persistentVolumeClaim"}
	traefik := map[string]string{"app.kubernetes.io/name": "traefik"}
	keep := func(mod func(p *Pod)) Pod {
		p := Pod{Namespace: "web", OwnerKind: "ReplicaSet"}
		mod(&p)
		return p
	}
	both := Policy{DeleteLocal: true, DeleteUnmanaged: true}
	for name, c := range map[string]struct {
		pod    Pod
		block  []string // what keeps it by default
		delete []string // where local storage and unmanaged pods are deleted
	}{
		"one of a controller":    {pod: keep(func(*Pod) {})},
		"one without":            {pod: keep(func(p *Pod) { p.OwnerKind = "" }), block: []string{CodeUnmanaged}},
		"one with local storage": {pod: keep(func(p *Pod) { p.Local = []Volume{tmp} }), block: []string{CodeLocalStorage}},
		"one with lasting data":  {pod: keep(func(p *Pod) { p.Local = []Volume{data} }), block: []string{CodeLocalStorage}},
		"with both":              {pod: keep(func(p *Pod) { p.OwnerKind, p.Local = "", []Volume{tmp} }), block: []string{CodeUnmanaged, CodeLocalStorage}},
		"an add-on's scratch":    {pod: keep(func(p *Pod) { p.Namespace, p.Labels, p.Local = SystemNamespace, traefik, []Volume{tmp} })},
		"an add-on's data":       {pod: keep(func(p *Pod) { p.Namespace, p.Labels, p.Local = SystemNamespace, traefik, []Volume{tmp, data} }), block: []string{CodeLocalStorage}},
		"a namesake elsewhere":   {pod: keep(func(p *Pod) { p.Labels, p.Local = traefik, []Volume{tmp} }), block: []string{CodeLocalStorage}},
		"what is safe to lose":   {pod: keep(func(p *Pod) { p.Local, p.Annotations = []Volume{tmp}, map[string]string{SafeLocalVolumes: "x,tmp"} })},
		"what is safe altogether": {pod: keep(func(p *Pod) {
			p.OwnerKind, p.Local, p.Annotations = "", []Volume{data}, map[string]string{SafeToEvict: "true"}
		})},
		"not safe": {pod: keep(func(p *Pod) { p.Annotations = map[string]string{SafeToEvict: "false"} }),
			block: []string{CodeNotSafeToEvict}, delete: []string{CodeNotSafeToEvict}},
		"not to be disrupted": {pod: keep(func(p *Pod) { p.Annotations = map[string]string{DoNotDisrupt: "true"} }),
			block: []string{CodeDoNotDisrupt}, delete: []string{CodeDoNotDisrupt}},
		"safe and not to be disrupted": {pod: keep(func(p *Pod) { p.Annotations = map[string]string{DoNotDisrupt: "true", SafeToEvict: "true"} }),
			block: []string{CodeDoNotDisrupt}, delete: []string{CodeDoNotDisrupt}},
		"a system pod": {pod: keep(func(p *Pod) { p.Namespace = SystemNamespace }),
			block: []string{CodeKubeSystem}, delete: []string{CodeKubeSystem}},
		"a system pod with a budget": {pod: keep(func(p *Pod) { p.Namespace, p.Budgeted = SystemNamespace, true })},
		"one of ours": {pod: keep(func(p *Pod) { p.Labels = map[string]string{"app.kubernetes.io/name": "k3s-autoscaler"} }),
			block: []string{CodeOwnPod}, delete: []string{CodeOwnPod}},
	} {
		require.Equal(t, c.block, codes(Policy{}.Keeps(c.pod)), name)
		require.Equal(t, c.delete, codes(both.Keeps(c.pod)), name)
		for _, r := range (Policy{}).Keeps(c.pod) {
			require.NotEmpty(t, r.Message, name)
			require.NotEmpty(t, r.Fix, name)
		}
	}
}

func TestEachOptionLiftsItsOwnReasonAlone(t *testing.T) {
	t.Parallel()
	pod := Pod{Namespace: "web", Local: []Volume{{"a", EmptyDir}, {"b", "hostPath"}}}
	require.Equal(t, []string{CodeUnmanaged}, codes(Policy{DeleteLocal: true}.Keeps(pod)))
	rs := Policy{DeleteUnmanaged: true}.Keeps(pod)
	require.Equal(t, []string{CodeLocalStorage}, codes(rs))
	require.Equal(t, "keeps data on the node in volumes a (emptyDir), b (hostPath)", rs[0].Message)
	require.Contains(t, rs[0].Fix, "drain.local_storage: delete")
}

func TestAJobThatMayEndIsToldSo(t *testing.T) {
	t.Parallel()
	pod := Pod{Namespace: "ci", OwnerKind: "Job", Annotations: map[string]string{SafeToEvict: "false"}}
	require.Contains(t, Policy{}.Keeps(pod)[0].Fix, "scale_down.jobs: finish")
}
