package main

import (
	"cmp"
	"hash/fnv"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"
	internalcache "k8s.io/kubernetes/pkg/scheduler/backend/cache"
	"k8s.io/kubernetes/pkg/scheduler/framework"
)

// world is what the framework sees of the cluster: nodes with the pods that are
// bound to them, and the pods that are nominated. It is taken anew whenever a
// pod or node comes or goes.
type world struct {
	nodes map[string]*corev1.Node
	pods  map[string]*corev1.Pod // "namespace/name"
	seen  framework.SharedLister
}

func key(p *corev1.Pod) string { return p.Namespace + "/" + p.Name }

// put adds a pod that began at a time which its name decides: without one the
// scheduler decides by the clock who of equals has to go in a preemption.
func (w *world) put(p *corev1.Pod) {
	if p.Status.StartTime == nil {
		sum := fnv.New32a()
		_, _ = sum.Write([]byte(key(p)))
		p.Status.StartTime = &metav1.Time{Time: time.Unix(int64(sum.Sum32()), 0)}
	}
	w.pods[key(p)] = p
}

// look takes the view anew.
func (w *world) look() {
	var nodes []*corev1.Node
	for _, n := range w.nodes {
		nodes = append(nodes, n)
	}
	var pods []*corev1.Pod
	for _, p := range w.pods {
		if w.nodes[p.Spec.NodeName] != nil {
			pods = append(pods, p)
		}
	}
	byKey := func(a, b *corev1.Pod) int { return cmp.Compare(key(a), key(b)) }
	slices.SortFunc(pods, byKey)
	w.seen = internalcache.NewSnapshot(pods, nodes)
}

// NodeInfos and StorageInfos implement framework.SharedLister.
func (w *world) NodeInfos() framework.NodeInfoLister       { return w.seen.NodeInfos() }
func (w *world) StorageInfos() framework.StorageInfoLister { return w.seen.StorageInfos() }

// infos are the nodes by name: the view's own order is that of a map.
func (w *world) infos() ([]fwk.NodeInfo, error) {
	infos, err := w.seen.NodeInfos().List()
	if err != nil {
		return nil, err
	}
	infos = slices.Clone(infos)
	slices.SortFunc(infos, func(a, b fwk.NodeInfo) int { return cmp.Compare(a.Node().Name, b.Node().Name) })
	return infos, nil
}

// NominatedPodsForNode and those after it implement framework.PodNominator: a
// pod is nominated as its status says.
func (w *world) NominatedPodsForNode(node string) []fwk.PodInfo {
	var out []fwk.PodInfo
	for _, p := range w.pods {
		if p.Spec.NodeName == "" && p.Status.NominatedNodeName == node {
			if info, err := framework.NewPodInfo(p); err == nil {
				out = append(out, info)
			}
		}
	}
	slices.SortFunc(out, func(a, b fwk.PodInfo) int { return cmp.Compare(key(a.GetPod()), key(b.GetPod())) })
	return out
}
func (w *world) AddNominatedPod(klog.Logger, fwk.PodInfo, *framework.NominatingInfo) {}
func (w *world) DeleteNominatedPodIfExists(*corev1.Pod)                              {}
func (w *world) UpdateNominatedPod(klog.Logger, *corev1.Pod, fwk.PodInfo)            {}

// informer is one that is never run: who asks to be told is told of the objects
// that are there, at once.
type informer struct{ cache.SharedIndexInformer }

func (i informer) AddEventHandler(h cache.ResourceEventHandler) (cache.ResourceEventHandlerRegistration, error) {
	for _, o := range i.GetIndexer().List() {
		h.OnAdd(o, true)
	}
	return told{}, nil
}

type told struct{}

func (told) HasSynced() bool { return true }
