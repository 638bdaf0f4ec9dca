package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/events"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/apis/config/latest"
	"k8s.io/kubernetes/pkg/scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins"
	frameworkruntime "k8s.io/kubernetes/pkg/scheduler/framework/runtime"
	"k8s.io/kubernetes/pkg/scheduler/metrics"
)

// scheduler is the framework of the default profile over a world.
type scheduler struct {
	*world
	framework framework.Framework
	evicted   *[]string
}

func newScheduler(ctx context.Context, c cluster) (*scheduler, error) {
	w := &world{nodes: map[string]*corev1.Node{}, pods: map[string]*corev1.Pod{}}
	for _, n := range c.Nodes {
		w.nodes[n.Name] = n
	}
	for _, p := range c.Pods {
		w.put(p)
	}
	w.look()
	config, err := latest.Default()
	if err != nil {
		return nil, err
	}
	evicted := &[]string{}
	client := newClient(evicted)
	factory, err := newFactory(client, c)
	if err != nil {
		return nil, err
	}
	f, err := frameworkruntime.NewFramework(ctx, plugins.NewInTreeRegistry(), &config.Profiles[0],
		frameworkruntime.WithClientSet(client), frameworkruntime.WithInformerFactory(factory),
		frameworkruntime.WithSnapshotSharedLister(w), frameworkruntime.WithPodNominator(w),
		frameworkruntime.WithEventRecorder(&events.FakeRecorder{}), frameworkruntime.WithParallelism(1),
		frameworkruntime.WithWaitingPods(frameworkruntime.NewWaitingPodsMap()),
		frameworkruntime.WithMetricsRecorder(metrics.NewMetricsAsyncRecorder(1, time.Hour, ctx.Done())))
	if err != nil {
		return nil, fmt.Errorf("make the framework: %w", err)
	}
	return &scheduler{world: w, framework: f, evicted: evicted}, nil
}

// newClient answers the calls of a preemption, and notes who is to go.
func newClient(evicted *[]string) kubernetes.Interface {
	client := &fake.Clientset{}
	client.AddReactor("delete", "pods", func(a clienttesting.Action) (bool, runtime.Object, error) {
		d := a.(clienttesting.DeleteAction)
		*evicted = append(*evicted, d.GetNamespace()+"/"+d.GetName())
		return true, nil, nil
	})
	client.AddReactor("patch", "pods", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, &corev1.Pod{}, nil
	})
	return client
}

// newFactory returns informers that know the cluster and are never run.
func newFactory(client kubernetes.Interface, c cluster) (informers.SharedInformerFactory, error) {
	factory := informers.NewSharedInformerFactory(client, 0)
	var failed error
	fill(factory, &failed, &corev1.Pod{}, c.Pods)
	fill(factory, &failed, &corev1.Node{}, c.Nodes)
	fill(factory, &failed, &corev1.Namespace{}, c.Namespaces)
	fill(factory, &failed, &corev1.PersistentVolumeClaim{}, c.Claims)
	fill(factory, &failed, &corev1.PersistentVolume{}, c.Volumes)
	fill(factory, &failed, &storagev1.StorageClass{}, c.StorageClasses)
	return factory, failed
}

func fill[T runtime.Object](factory informers.SharedInformerFactory, failed *error, example runtime.Object, objects []T) {
	i := factory.InformerFor(example, func(kubernetes.Interface, time.Duration) cache.SharedIndexInformer {
		return informer{cache.NewSharedIndexInformer(&cache.ListWatch{}, example, 0, cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc})}
	})
	for _, o := range objects {
		if err := i.GetIndexer().Add(o); err != nil {
			*failed = err
		}
	}
}

// filtered is what a scheduling cycle knows of a pod when it has looked at nodes.
type filtered struct {
	state    fwk.CycleState
	feasible []fwk.NodeInfo
	statuses *framework.NodeToStatus
	fate     fate
	gated    bool // the scheduler does not even look at it
}

// filter looks which of the nodes (nil: all) would take the pod now.
func (s *scheduler) filter(ctx context.Context, pod *corev1.Pod, only func(node string) bool) (filtered, error) {
	f := filtered{state: framework.NewCycleState(), statuses: framework.NewDefaultNodeToStatus()}
	if pod.Spec.SchedulerName != s.framework.ProfileName() {
		f.refused(fwk.NewStatus(fwk.UnschedulableAndUnresolvable, "the pod is left to "+pod.Spec.SchedulerName).WithPlugin("SchedulerName"))
		f.gated = true
		return f, nil
	}
	for _, p := range s.framework.PreEnqueuePlugins() {
		if st := p.PreEnqueue(ctx, pod); !st.IsSuccess() {
			f.refused(st)
			f.gated = true
			return f, nil
		}
	}
	result, st, _ := s.framework.RunPreFilterPlugins(ctx, f.state, pod)
	switch {
	case st.IsRejected():
		f.statuses.SetAbsentNodesStatus(st)
		f.refused(st)
		return f, nil
	case !st.IsSuccess():
		return f, fmt.Errorf("pre-filter pod %s: %w", key(pod), st.AsError())
	}
	infos, err := s.infos()
	if err != nil {
		return f, err
	}
	for _, info := range infos {
		name := info.Node().Name
		if only != nil && !only(name) {
			continue
		}
		if !result.AllNodes() && !result.NodeNames.Has(name) {
			f.refused(fwk.NewStatus(fwk.UnschedulableAndUnresolvable, "the pod names other nodes").WithPlugin("NodeAffinity"))
			continue
		}
		switch st := s.framework.RunFilterPluginsWithNominatedPods(ctx, f.state, pod, info); {
		case st.IsSuccess():
			f.feasible = append(f.feasible, info)
		case st.IsRejected():
			f.statuses.Set(name, st)
			f.refused(st)
		default:
			return f, fmt.Errorf("filter node %s for pod %s: %w", name, key(pod), st.AsError())
		}
	}
	return f, nil
}

func (f *filtered) refused(st *fwk.Status) {
	if p := st.Plugin(); !slices.Contains(f.fate.Plugins, p) {
		f.fate.Plugins = append(f.fate.Plugins, p)
		f.fate.Reason = strings.TrimPrefix(f.fate.Reason+"; "+p+": "+st.Message(), "; ")
	}
}

// bind puts the pod on the node, its volumes included.
func (s *scheduler) bind(ctx context.Context, state fwk.CycleState, pod *corev1.Pod, node string) error {
	if st := s.framework.RunReservePluginsReserve(ctx, state, pod, node); !st.IsSuccess() {
		return fmt.Errorf("reserve node %s for pod %s: %w", node, key(pod), st.AsError())
	}
	bound := pod.DeepCopy()
	bound.Spec.NodeName, bound.Status.NominatedNodeName = node, ""
	s.pods[key(pod)] = bound
	s.look()
	return nil
}

// place puts the pod on one node, if the scheduler may do so, where it may push
// pods of lower priority off that node.
func (s *scheduler) place(ctx context.Context, pod *corev1.Pod, node string) (fate, error) {
	here := func(n string) bool { return n == node }
	f, err := s.filter(ctx, pod, here)
	if err != nil {
		return fate{}, err
	}
	if len(f.feasible) == 0 {
		evicted, err := s.preempt(ctx, pod, f)
		if err != nil || evicted == nil {
			return f.fate, err
		}
		f.fate.Evicted = evicted
		again, err := s.filter(ctx, pod, here)
		if err != nil || len(again.feasible) == 0 {
			return f.fate, err
		}
		f.state, f.feasible = again.state, again.feasible
	}
	return fate{Node: node, Evicted: f.fate.Evicted}, s.bind(ctx, f.state, pod, node)
}

// retry tries the pods that were refused again, as the scheduler does whenever
// others have been placed, until nothing moves any more.
func (s *scheduler) retry(ctx context.Context, q question, fates []fate) error {
	for moved := true; moved; {
		moved = false
		for i, ref := range q.Pods {
			if fates[i].Node != "" || s.pods[ref] == nil {
				continue
			}
			f, err := s.place(ctx, s.pods[ref], q.Nodes[i])
			if err != nil {
				return err
			}
			fates[i] = f
			moved = moved || f.Node != ""
		}
	}
	return nil
}

// preempt has the pod push others off a node; nil when it can't.
func (s *scheduler) preempt(ctx context.Context, pod *corev1.Pod, f filtered) ([]string, error) {
	if f.gated {
		return nil, nil
	}
	for _, name := range slices.Sorted(maps.Keys(s.nodes)) {
		if f.statuses.Get(name) == nil {
			f.statuses.Set(name, fwk.NewStatus(fwk.UnschedulableAndUnresolvable, "not asked"))
		}
	}
	*s.evicted = nil
	result, st := s.framework.RunPostFilterPlugins(ctx, f.state, pod, f.statuses)
	if !st.IsSuccess() || result == nil || result.NominatingInfo == nil || result.NominatedNodeName == "" {
		if st.Code() == fwk.Error {
			return nil, fmt.Errorf("preempt for pod %s: %w", key(pod), st.AsError())
		}
		return nil, nil
	}
	evicted := append([]string{}, *s.evicted...)
	slices.Sort(evicted)
	for _, victim := range evicted {
		delete(s.pods, victim)
	}
	nominated := s.pods[key(pod)].DeepCopy()
	nominated.Status.NominatedNodeName = result.NominatedNodeName
	s.pods[key(pod)] = nominated
	s.look()
	return evicted, nil
}

// schedule puts the pod where the scheduler would; of equal nodes on the first
// by name.
func (s *scheduler) schedule(ctx context.Context, pod *corev1.Pod) (fate, error) {
	f, err := s.filter(ctx, pod, nil)
	if err != nil {
		return fate{}, err
	}
	var evicted []string
	if len(f.feasible) == 0 {
		evicted, err = s.preempt(ctx, pod, f)
		if err != nil || evicted == nil {
			return f.fate, err
		}
		if f, err = s.filter(ctx, s.pods[key(pod)], func(n string) bool { return n == s.pods[key(pod)].Status.NominatedNodeName }); err != nil || len(f.feasible) == 0 {
			f.fate.Evicted = evicted
			return f.fate, err
		}
	}
	node := f.feasible[0].Node().Name
	if len(f.feasible) > 1 {
		if st := s.framework.RunPreScorePlugins(ctx, f.state, pod, f.feasible); !st.IsSuccess() {
			return fate{}, fmt.Errorf("pre-score pod %s: %w", key(pod), st.AsError())
		}
		scores, st := s.framework.RunScorePlugins(ctx, f.state, pod, f.feasible)
		if !st.IsSuccess() {
			return fate{}, fmt.Errorf("score nodes for pod %s: %w", key(pod), st.AsError())
		}
		best := scores[0]
		for _, o := range scores[1:] {
			if o.TotalScore > best.TotalScore {
				best = o
			}
		}
		node = best.Name
	}
	return fate{Node: node, Evicted: evicted, Plugins: f.fate.Plugins}, s.bind(ctx, f.state, pod, node)
}

// add puts a node of a template into the world, and take takes it out again.
func (s *scheduler) add(t template, name string) {
	n := t.Node.DeepCopy()
	n.Name = name
	n.Labels[corev1.LabelHostname] = name
	s.nodes[name] = n
	for i, p := range t.Pods {
		p = p.DeepCopy()
		p.Name, p.Spec.NodeName = fmt.Sprintf("%s-%s-%d", p.Name, name, i), name
		s.put(p)
	}
	s.look()
}

func (s *scheduler) take(name string) {
	delete(s.nodes, name)
	maps.DeleteFunc(s.pods, func(_ string, p *corev1.Pod) bool { return p.Spec.NodeName == name })
	s.look()
}

// probe says whether the pod could go on a new node of the template.
func (s *scheduler) probe(ctx context.Context, pod *corev1.Pod, t template) (fate, error) {
	name := t.Name + "-probe"
	s.add(t, name)
	defer s.take(name)
	f, err := s.filter(ctx, pod, func(n string) bool { return n == name })
	if len(f.feasible) > 0 {
		f.fate = fate{Node: name}
	}
	return f.fate, err
}

// pack puts the pod on the first node that takes it, else on a new one of the
// first template that does.
func (s *scheduler) pack(ctx context.Context, pod *corev1.Pod, ts []template) (fate, int, error) {
	f, err := s.filter(ctx, pod, nil)
	if err != nil {
		return fate{}, 0, err
	}
	if len(f.feasible) > 0 {
		node := f.feasible[0].Node().Name
		return fate{Node: node}, 0, s.bind(ctx, f.state, pod, node)
	}
	evicted, err := s.preempt(ctx, pod, f)
	if err != nil {
		return fate{}, 0, err
	}
	if evicted != nil {
		got, err := s.place(ctx, s.pods[key(pod)], s.pods[key(pod)].Status.NominatedNodeName)
		got.Evicted = evicted
		return got, 0, err
	}
	for _, t := range ts {
		name := fmt.Sprintf("zz-%s-%04d", t.Name, len(s.nodes))
		s.add(t, name)
		got, err := s.place(ctx, pod, name)
		if err != nil || got.Node != "" {
			return got, 1, err
		}
		s.take(name)
	}
	return f.fate, 0, nil
}
