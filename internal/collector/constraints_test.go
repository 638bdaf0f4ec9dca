package collector

import (
	"testing"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

func of[T any](v T) *T { return &v }

func selecting(k, v string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{k: v}}
}

func classFrom(t *testing.T, labels map[string]string, spec corev1.PodSpec) events.PodClass {
	t.Helper()
	c, err := classOf(trimPod(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Labels: labels}, Spec: spec}), podVolumes{})
	require.NoError(t, err)
	roundtrip(t, c)
	return c
}

func TestAClassCarriesTheHardConstraintsOfItsPodsAndNoPreferences(t *testing.T) {
	t.Parallel()
	c := classFrom(t, map[string]string{"app": "web", "rev": "7"}, corev1.PodSpec{
		PreemptionPolicy: of(corev1.PreemptNever), SchedulerName: corev1.DefaultSchedulerName,
		Affinity: &corev1.Affinity{
			PodAffinity: &corev1.PodAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{
				{TopologyKey: "zone", LabelSelector: selecting("app", "db"), Namespaces: []string{"data"}, NamespaceSelector: &metav1.LabelSelector{}}}},
			PodAntiAffinity: &corev1.PodAntiAffinity{
				RequiredDuringSchedulingIgnoredDuringExecution:  []corev1.PodAffinityTerm{{TopologyKey: "host"}},
				PreferredDuringSchedulingIgnoredDuringExecution: []corev1.WeightedPodAffinityTerm{{Weight: 1}}}},
		TopologySpreadConstraints: []corev1.TopologySpreadConstraint{
			{TopologyKey: "zone", MaxSkew: 2, WhenUnsatisfiable: corev1.DoNotSchedule, LabelSelector: selecting("app", "web"), MinDomains: of(int32(3)),
				NodeAffinityPolicy: of(corev1.NodeInclusionPolicyIgnore), NodeTaintsPolicy: of(corev1.NodeInclusionPolicyHonor), MatchLabelKeys: []string{"rev", "none"}},
			{TopologyKey: "host", MaxSkew: 1, WhenUnsatisfiable: corev1.ScheduleAnyway}},
		Containers: []corev1.Container{{Ports: []corev1.ContainerPort{{ContainerPort: 81}, {HostPort: 80, HostIP: "0.0.0.0", Protocol: corev1.ProtocolTCP}}}},
		InitContainers: []corev1.Container{{Ports: []corev1.ContainerPort{{HostPort: 70}}},
			{RestartPolicy: of(corev1.ContainerRestartPolicyAlways), Ports: []corev1.ContainerPort{{HostPort: 53, HostIP: "10.0.0.1", Protocol: corev1.ProtocolUDP}}}},
	})
	require.Equal(t, []events.PodAffinityTerm{{TopologyKey: "zone", Selector: &events.Selector{MatchLabels: map[string]string{"app": "db"}},
		Namespaces: []string{"data"}, NamespaceSelector: &events.Selector{}}}, c.PodAffinity)
	require.Equal(t, []events.PodAffinityTerm{{TopologyKey: "host"}}, c.PodAntiAffinity, "no selector stays none: it selects nothing")
	require.Equal(t, []events.TopologySpread{{TopologyKey: "zone", MaxSkew: 2, MinDomains: 3, IgnoreNodeAffinity: true, HonorTaints: true,
		Selector: &events.Selector{MatchLabels: map[string]string{"app": "web"},
			MatchExpressions: []events.Requirement{{Key: "rev", Operator: "In", Values: []string{"7"}}}}}}, c.TopologySpread)
	require.Equal(t, []events.HostPort{{IP: "10.0.0.1", Protocol: "UDP", Port: 53}, {Port: 80}}, c.HostPorts,
		"an init container that ends keeps no port")
	require.True(t, c.NeverPreempts)
	require.Empty(t, c.Unsimulated)
	require.Empty(t, c.SchedulerName)
	require.Equal(t, c.TopologySpread, classFrom(t, map[string]string{"app": "web", "rev": "7"}, corev1.PodSpec{
		TopologySpreadConstraints: []corev1.TopologySpreadConstraint{{TopologyKey: "zone", MaxSkew: 2, WhenUnsatisfiable: corev1.DoNotSchedule,
			MinDomains: of(int32(3)), NodeAffinityPolicy: of(corev1.NodeInclusionPolicyIgnore), NodeTaintsPolicy: of(corev1.NodeInclusionPolicyHonor),
			MatchLabelKeys: []string{"rev"}, LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"},
				MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "rev", Operator: metav1.LabelSelectorOpIn, Values: []string{"7"}}}}}},
	}).TopologySpread, "keys that the API server has merged are not merged again")
}

func TestConstraintsThatAClassDoesNotSpellOutAreNamed(t *testing.T) {
	t.Parallel()
	terms := []corev1.PodAffinityTerm{{TopologyKey: "host", LabelSelector: selecting(appsv1.PodIndexLabel, "0")}}
	for want, spec := range map[string]corev1.PodSpec{
		events.ConstraintPodAffinity:     {Affinity: &corev1.Affinity{PodAffinity: &corev1.PodAffinity{RequiredDuringSchedulingIgnoredDuringExecution: terms}}},
		events.ConstraintPodAntiAffinity: {Affinity: &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: terms}}},
		events.ConstraintTopologySpread: {TopologySpreadConstraints: []corev1.TopologySpreadConstraint{{WhenUnsatisfiable: corev1.DoNotSchedule,
			LabelSelector: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: appsv1.StatefulSetPodNameLabel, Operator: metav1.LabelSelectorOpExists}}}}}},
		events.ConstraintResourceClaims:   {ResourceClaims: []corev1.PodResourceClaim{{Name: "gpu"}}},
		events.ConstraintForeignScheduler: {SchedulerName: "volcano"},
	} {
		require.Equal(t, []string{want}, classFrom(t, nil, spec).Unsimulated)
	}
}

func TestVolumesSayWhereAPodCanGoOrWhyItWaits(t *testing.T) {
	t.Parallel()
	waits := of(storagev1.VolumeBindingWaitForFirstConsumer)
	in := func(key string, values ...string) events.Requirement {
		return events.Requirement{Key: key, Operator: "In", Values: values}
	}
	class := func(name string) *corev1.PersistentVolumeClaim {
		return &corev1.PersistentVolumeClaim{Spec: corev1.PersistentVolumeClaimSpec{StorageClassName: &name}}
	}
	bound := func(v corev1.PersistentVolume) (*corev1.PersistentVolumeClaim, *corev1.PersistentVolume) {
		v.Name = "pv"
		return &corev1.PersistentVolumeClaim{Spec: corev1.PersistentVolumeClaimSpec{VolumeName: "pv"}}, &v
	}
	local, localVolume := bound(corev1.PersistentVolume{Spec: corev1.PersistentVolumeSpec{NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{
		NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{"w1"}}}}}}}}})
	zonal, zonalVolume := bound(corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{corev1.LabelFailureDomainBetaZone: "b__a"}}})
	nowhere := events.NodeSelectorTerm{}
	for _, z := range zoneLabels {
		nowhere.MatchExpressions = append(nowhere.MatchExpressions, events.Requirement{Key: z.label, Operator: "DoesNotExist"})
	}
	chosen := class("wait")
	chosen.Annotations = map[string]string{annSelectedNode: "w2"}
	alone := class("wait")
	alone.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOncePod}
	old := class("now")
	old.Annotations = map[string]string{corev1.BetaStorageClassAnnotation: "wait"}
	going := class("wait")
	going.DeletionTimestamp = &metav1.Time{}
	for name, c := range map[string]struct {
		claim       *corev1.PersistentVolumeClaim
		volume      *corev1.PersistentVolume
		want        []events.VolumeTopology
		problem     string
		unsimulated bool
	}{
		"no claim":       {problem: "does not exist"},
		"being deleted":  {claim: going, problem: "is being deleted"},
		"a local volume": {claim: local, volume: localVolume, want: []events.VolumeTopology{{Kind: events.VolumeNodeAffinity, Terms: []events.NodeSelectorTerm{{MatchExpressions: []events.Requirement{in(corev1.LabelHostname, "w1")}}}}}},
		"a volume with an old label of two zones": {claim: zonal, volume: zonalVolume, want: []events.VolumeTopology{{Kind: events.VolumeZone, Terms: []events.NodeSelectorTerm{
			{MatchExpressions: []events.Requirement{in(corev1.LabelFailureDomainBetaZone, "a", "b")}},
			{MatchExpressions: []events.Requirement{{Key: corev1.LabelFailureDomainBetaZone, Operator: "DoesNotExist"}, in(corev1.LabelTopologyZone, "a", "b")}},
			nowhere}}}},
		"a volume that is not known yet":    {claim: local, unsimulated: true},
		"no storage class":                  {claim: &corev1.PersistentVolumeClaim{}, problem: "names no storage class"},
		"an unknown storage class":          {claim: class("other"), problem: "other does not exist"},
		"a class that binds at once":        {claim: class("now"), problem: "does not wait for a pod"},
		"a class that waits":                {claim: class("wait")},
		"the class of the old annotation":   {claim: old},
		"a class that provides for zones":   {claim: class("zones"), want: []events.VolumeTopology{{Kind: events.VolumeAllowed, Terms: []events.NodeSelectorTerm{{MatchExpressions: []events.Requirement{in("zone", "x", "y")}}}}}},
		"a class whose volumes people make": {claim: class("manual"), unsimulated: true},
		"being provisioned": {claim: chosen, want: []events.VolumeTopology{{Kind: events.VolumeSelectedNode, Terms: []events.NodeSelectorTerm{
			{MatchFields: []events.Requirement{in("metadata.name", "w2")}}}}}},
		"for one pod alone": {claim: alone, unsimulated: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newModel()
			for _, s := range []*storagev1.StorageClass{
				{ObjectMeta: metav1.ObjectMeta{Name: "now"}, Provisioner: "p"},
				{ObjectMeta: metav1.ObjectMeta{Name: "wait"}, Provisioner: "p", VolumeBindingMode: waits},
				{ObjectMeta: metav1.ObjectMeta{Name: "manual"}, Provisioner: noProvisioner, VolumeBindingMode: waits},
				{ObjectMeta: metav1.ObjectMeta{Name: "zones"}, Provisioner: "p", VolumeBindingMode: waits, AllowedTopologies: []corev1.TopologySelectorTerm{
					{MatchLabelExpressions: []corev1.TopologySelectorLabelRequirement{{Key: "zone", Values: []string{"x", "y"}}}}}},
			} {
				m.storage[s.Name] = convertStorageClass(trimStorageClass(s))
			}
			if c.claim != nil {
				m.claims["shop/data"] = convertClaim(trimClaim(c.claim))
			}
			if c.volume != nil {
				m.volumes["pv"] = convertVolume(trimVolume(c.volume))
			}
			p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "a"}, Spec: corev1.PodSpec{Volumes: []corev1.Volume{
				{Name: "data", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}}}}}}
			got := m.volumesOf(trimPod(p))
			require.Equal(t, c.want, got.from)
			require.Equal(t, c.unsimulated, got.unsimulated)
			if c.problem == "" {
				require.Empty(t, got.problem)
			} else {
				require.Contains(t, got.problem, "claim shop/data ")
				require.Contains(t, got.problem, c.problem)
			}
			class, err := classOf(p, got)
			require.NoError(t, err)
			roundtrip(t, class)
		})
	}
}
