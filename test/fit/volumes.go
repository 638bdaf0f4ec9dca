package fit

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// volume gives the pod a claim of its own: bound to a volume that only some
// nodes can use or that is in a zone, or waiting for the pod to be scheduled.
func (g *generator) volume(p *corev1.Pod) {
	var kinds []string
	for _, k := range []string{"volumes by node", "volume zones", "allowed topologies"} {
		if g.some(k, 0.5) {
			kinds = append(kinds, k)
		}
	}
	for i, kind := range kinds {
		name := fmt.Sprintf("data-%s-%d", p.Name, i)
		claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: name, UID: types.UID(name), ResourceVersion: "1"},
			Spec: corev1.PersistentVolumeClaimSpec{AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, StorageClassName: new("")}}
		if kind == "allowed topologies" {
			claim.Spec.StorageClassName = new(g.storageClass())
			claim.Status.Phase = corev1.ClaimPending
		} else {
			g.bind(claim, kind)
		}
		g.c.Claims = append(g.c.Claims, claim)
		p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name}}})
	}
}

func (g *generator) bind(claim *corev1.PersistentVolumeClaim, kind string) {
	v := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv-" + claim.Name, UID: types.UID("pv-" + claim.Name), ResourceVersion: "1"},
		Spec: corev1.PersistentVolumeSpec{AccessModes: claim.Spec.AccessModes,
			PersistentVolumeSource: corev1.PersistentVolumeSource{NFS: &corev1.NFSVolumeSource{Server: "nas", Path: "/"}},
			ClaimRef:               &corev1.ObjectReference{Kind: "PersistentVolumeClaim", Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID}},
		Status: corev1.PersistentVolumeStatus{Phase: corev1.VolumeBound}}
	if kind == "volume zones" {
		v.Labels = map[string]string{pick(g, corev1.LabelTopologyZone, corev1.LabelTopologyZone, corev1.LabelFailureDomainBetaZone): pick(g, append(zones, "zone-a__zone-b")...)}
	} else {
		r := corev1.NodeSelectorRequirement{Key: corev1.LabelTopologyZone, Operator: corev1.NodeSelectorOpIn, Values: []string{pick(g, zones...)}}
		if g.chance(0.4) {
			r = corev1.NodeSelectorRequirement{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{pick(g, g.c.Nodes...).Name}}
		}
		v.Spec.NodeAffinity = &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{r}}}}}
	}
	claim.Annotations = map[string]string{"pv.kubernetes.io/bind-completed": "yes"}
	claim.Spec.VolumeName, claim.Status.Phase = v.Name, corev1.ClaimBound
	g.c.Volumes = append(g.c.Volumes, v)
}

// storageClass returns the name of one whose volumes are made where the pod goes.
func (g *generator) storageClass() string {
	name := fmt.Sprintf("%scsi-%d", g.prefix, len(g.c.StorageClasses))
	c := &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name), ResourceVersion: "1"}, Provisioner: "csi.example.com",
		VolumeBindingMode: new(storagev1.VolumeBindingWaitForFirstConsumer)}
	if g.chance(0.85) {
		c.AllowedTopologies = []corev1.TopologySelectorTerm{{MatchLabelExpressions: []corev1.TopologySelectorLabelRequirement{
			{Key: corev1.LabelTopologyZone, Values: []string{pick(g, zones...)}}}}}
	}
	g.c.StorageClasses = append(g.c.StorageClasses, c)
	return name
}
