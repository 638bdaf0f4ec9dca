// Package evictable says what keeps a pod on a node that is to be emptied, budgets
// aside: one definition for the decision to remove a node and for the drain that
// follows, so that nothing is decided that the drain refuses, again and again.
package evictable

import (
	"fmt"
	"slices"
	"strings"
)

// Annotations of pods that users of Cluster Autoscaler and Karpenter have already;
// they mean the same here.
const (
	SafeToEvict      = "cluster-autoscaler.kubernetes.io/safe-to-evict"
	SafeLocalVolumes = "cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes"
	DoNotDisrupt     = "karpenter.sh/do-not-disrupt"
)

// Codes of a Reason.
const (
	CodeNotSafeToEvict = "NotSafeToEvict"
	CodeDoNotDisrupt   = "DoNotDisrupt"
	CodeUnmanaged      = "UnmanagedPod"
	CodeLocalStorage   = "LocalStorage"
	CodeKubeSystem     = "KubeSystemPod"
	CodeOwnPod         = "OwnPod"
)

// SystemNamespace holds what the cluster itself needs.
const SystemNamespace = "kube-system"

// Volume is a volume of a pod that lives on its node.
type Volume struct{ Name, Kind string }

// EmptyDir is the kind of a volume that goes with its pod.
const EmptyDir = "emptyDir"

// Pod is what is judged of a pod.
type Pod struct {
	Namespace           string
	Labels, Annotations map[string]string
	OwnerKind           string   // of its controller, empty: it has none
	Local               []Volume // those that live on the node
	// Budgeted says that a disruption budget covers it. It is asked for in
	// kube-system only.
	Budgeted bool
}

// Policy is what a pool allows. The zero Policy keeps every pod that something
// would be lost of.
type Policy struct {
	// DeleteLocal has pods leave whose data is lost with the node, as kubectl drain
	// does with --delete-emptydir-data.
	DeleteLocal bool `json:"delete_local,omitempty"`
	// DeleteUnmanaged has pods leave that no controller would create again, as
	// kubectl drain does with --force.
	DeleteUnmanaged bool `json:"delete_unmanaged,omitempty"`
}

// Reason is why a pod is not evicted, as a predicate ("has no controller …"), and
// what would help.
type Reason struct{ Code, Message, Fix string }

// Keeps returns everything that keeps the pod on its node; nil: it may be evicted
// as far as its budgets let it. It allocates nothing then.
func (p Policy) Keeps(pod Pod) []Reason {
	var out []Reason
	safe := pod.Annotations[SafeToEvict]
	if safe == "false" {
		out = append(out, Reason{CodeNotSafeToEvict, "is annotated " + SafeToEvict + "=false", unannotate(pod)})
	}
	if pod.Annotations[DoNotDisrupt] == "true" {
		out = append(out, Reason{CodeDoNotDisrupt, "is annotated " + DoNotDisrupt + "=true", unannotate(pod)})
	}
	if safe == "true" {
		return out
	}
	if pod.OwnerKind == "" && !p.DeleteUnmanaged {
		out = append(out, Reason{CodeUnmanaged, "has no controller: nothing would create it again",
			"delete the pod, annotate it " + SafeToEvict + "=true, or set drain.unmanaged: delete for the pool"})
	}
	if !p.DeleteLocal {
		if vs := Lasting(pod); len(vs) > 0 {
			out = append(out, Reason{CodeLocalStorage, fmt.Sprintf("keeps data on the node in %s", list(vs)),
				"move the data, annotate the pod " + SafeToEvict + "=true, or set drain.local_storage: delete for the pool"})
		}
	}
	if pod.Namespace == SystemNamespace && !pod.Budgeted && !bundled(pod) {
		out = append(out, Reason{CodeKubeSystem, "belongs to kube-system, to no DaemonSet, and to no disruption budget",
			"annotate the pod " + SafeToEvict + "=true, give it a disruption budget, or keep it off this pool"})
	}
	if pod.Labels[labelApp] == ownApp {
		out = append(out, Reason{CodeOwnPod, "belongs to k3s-autoscaler itself, which would interrupt its own work",
			"keep it off this pool, or annotate the pod " + SafeToEvict + "=true"})
	}
	return out
}

func unannotate(pod Pod) string {
	fix := "remove the annotation or wait for the pod to end"
	if pod.OwnerKind == "Job" {
		fix += "; with scale_down.jobs: finish the node takes no new pods meanwhile"
	}
	return fix
}

func list(vs []Volume) string {
	names := make([]string, len(vs))
	for i, v := range vs {
		names[i] = fmt.Sprintf("%s (%s)", v.Name, v.Kind)
	}
	if len(vs) == 1 {
		return "volume " + names[0]
	}
	return "volumes " + strings.Join(names, ", ")
}

const (
	// labelApp and ownApp are what the pods of our own manifests carry.
	labelApp = "app.kubernetes.io/name"
	ownApp   = "k3s-autoscaler"
)

type bundledApp struct{ label, value string }

// bundledApps are labels of what k3s itself runs in kube-system, by its packaged
// manifests (coredns, metrics-server, local-path-provisioner, traefik). It can run
// on any node, and what it keeps on one are scratch files; on a cluster of a few
// nodes a rule against it would keep every node that it happens to run on.
var bundledApps = []bundledApp{
	{"k8s-app", "kube-dns"},
	{"k8s-app", "metrics-server"},
	{"app", "local-path-provisioner"},
	{labelApp, "traefik"},
}

// bundled reports whether a pod comes with k3s.
func bundled(pod Pod) bool {
	return pod.Namespace == SystemNamespace && slices.ContainsFunc(bundledApps, func(a bundledApp) bool { return pod.Labels[a.label] == a.value })
}

// Lasting are the volumes of a pod that live on its node and that nobody has
// declared safe to lose.
func Lasting(pod Pod) []Volume {
	if len(pod.Local) == 0 {
		return nil
	}
	safe := strings.Split(pod.Annotations[SafeLocalVolumes], ",")
	scratch := bundled(pod)
	var out []Volume
	for _, v := range pod.Local {
		if !slices.Contains(safe, v.Name) && (!scratch || v.Kind != EmptyDir) {
			out = append(out, v)
		}
	}
	return out
}
