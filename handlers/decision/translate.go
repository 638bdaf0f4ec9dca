package decision

import (
	"maps"
	"math"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/scaling"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/scaling/evictable"
)

// Policy is the policy in force in the core's words.
func (r *Record) Policy() scaling.Policy {
	if r.Config == nil {
		return scaling.Policy{}
	}
	p := r.Config.Policy
	out := scaling.Policy{ProtectedNodes: p.ProtectedNodes, StartupGrace: p.StartupGrace.Std(), StaleAfter: p.StaleAfter.Std(),
		MaxUnreadyFraction: p.MaxUnreadyFraction, MaxUnreadyCount: p.MaxUnreadyCount,
		MaxRemovalsPerHour: p.MaxRemovalsPerHour, ExpendableBelow: p.ExpendableBelow, PoolChoice: p.PoolChoice, DryRun: r.Config.DryRun}
	for _, o := range p.Pools {
		out.Pools = append(out.Pools, scaling.Pool{
			Name: o.Name, Provider: o.Provider, RenamedFrom: o.RenamedFrom, Min: o.Min, Max: o.Max, Size: resources(o.Size),
			Priority: o.Priority, PriceMicros: micros(o.Price), Labels: o.Labels, Taints: taints(o.Taints),
			StartupTaints:       taints(o.StartupTaints),
			ReplaceUnreadyAfter: o.ReplaceUnreadyAfter.Std(), RepairAfter: o.RepairAfter.Std(),
			ScaleUpCooldown: o.ScaleUpCooldown.Std(), ScaleDownAfterAdd: o.ScaleDownAfterAdd.Std(),
			ScaleDownAfterFail: o.ScaleDownAfterFail.Std(), ScaleDownCooldown: o.ScaleDownCooldown.Std(),
			Stabilization: o.Stabilization.Std(), UtilizationThreshold: o.UtilizationThreshold, Unneeded: o.Unneeded.Std(),
			MinLifetime: o.MinLifetime.Std(), MaxRemovals: o.MaxRemovals, RemovalOrder: o.RemovalOrder, FlapCount: o.FlapCount, FlapWithin: o.FlapWithin.Std(), FlapFreeze: o.FlapFreeze.Std(), RegisterDeadline: o.RegisterDeadline.Std(),
			ClaimExpiry: o.ClaimExpiry.Std(), DrainDeadline: o.DrainDeadline.Std(), JobsDeadline: o.JobsDeadline.Std(), BackoffInitial: o.BackoffInitial.Std(),
			BackoffMax: o.BackoffMax.Std(), BackoffReset: o.BackoffReset.Std(),
		})
	}
	for i, o := range p.Pools {
		out.Pools[i].Headroom = headroom(o.Headroom)
		out.Pools[i].ForceRemovals = o.DrainOnDeadline == events.DeadlineForce
		out.Pools[i].Evicts = evictable.Policy{DeleteLocal: o.DrainLocalStorage == events.PodsDelete, DeleteUnmanaged: o.DrainUnmanaged == events.PodsDelete}
		for _, s := range o.Schedules {
			out.Pools[i].Schedules = append(out.Pools[i].Schedules, scaling.Schedule{Name: s.Name, Min: s.Min, Max: s.Max, Headroom: headroom(s.Headroom),
				Window: scaling.Window{Schedule: s.Schedule, Duration: s.Duration.Std(), Timezone: s.Timezone}})
		}
		for _, b := range o.RemovalBudgets {
			out.Pools[i].Budgets = append(out.Pools[i].Budgets, scaling.RemovalBudget{Nodes: b.Nodes,
				Window: scaling.Window{Schedule: b.Schedule, Duration: b.Duration.Std(), Timezone: b.Timezone}})
		}
	}
	for _, o := range p.AlertRules {
		rule := scaling.AlertRule{Name: o.Name, Pool: o.Pool, Direction: o.Direction, Amount: o.Amount}
		for _, m := range o.Matchers {
			rule.Matchers = append(rule.Matchers, scaling.Matcher(m))
		}
		out.AlertRules = append(out.AlertRules, rule)
	}
	for _, o := range p.MetricRules {
		out.MetricRules = append(out.MetricRules, metricRule(o))
	}
	return out
}

func metricRule(o events.MetricRule) scaling.MetricRule {
	out := scaling.MetricRule{Name: o.Name, Pool: o.Pool, Metric: o.Metric, Signal: o.Signal, Query: o.Query, Interval: o.Interval.Std(),
		StaleAfter: o.StaleAfter.Std(), MayAdd: o.MayAdd, MayRemove: o.MayRemove, PassThrough: o.PassThrough, Fixed: o.Fixed}
	if o.Query != "" {
		out.QueryID = events.QueryDigest(o.Query, o.Interval)
	}
	if t := o.TargetValue; t != nil {
		out.TargetValue = &scaling.TargetValue{Target: t.Target, DeadBand: t.DeadBand}
	}
	if t := o.Threshold; t != nil {
		out.Threshold = &scaling.Threshold{AtLeast: t.AtLeast, Below: t.Below, Points: t.Points, Of: t.Of, Delta: t.Delta, Percent: t.Percent, Nodes: t.Nodes}
	}
	return out
}

func headroom(h *events.Headroom) *scaling.Headroom {
	if h == nil {
		return nil
	}
	return &scaling.Headroom{Pods: h.Pods, Pod: resources(h.Pod), Percent: h.Percent}
}

// micros are millionths of a price within the configuration's limits, whoever
// wrote the event.
func micros(price float64) int64 { return int64(math.Round(min(max(price, 0), 1000) * 1e6)) }

func (r *Record) pool(name string) (events.PoolPolicy, bool) {
	if r.Config != nil {
		for _, p := range r.Config.Policy.Pools {
			if p.Name == name {
				return p, true
			}
		}
	}
	return events.PoolPolicy{}, false
}

// Observe is a fold in the core's words, in the order of the keys.
func Observe(cluster string, f *events.Fold) scaling.Observation {
	o := objects(events.SnapshotObjects{Nodes: sorted(f.Nodes()), Classes: sorted(f.Classes()), Pods: sorted(f.Pods()), PDBs: sorted(f.PDBs()),
		DaemonSets: sorted(f.DaemonSets()), Records: sorted(f.Records()), Namespaces: sorted(f.Namespaces())})
	known(&o, cluster, f)
	o.Usage = usage(f)
	return o
}

// usage is the live usage of all nodes, never nil.
func usage(f *events.Fold) []scaling.Usage {
	all := f.Usage()
	out := make([]scaling.Usage, 0, len(all))
	for _, u := range sorted(all) {
		out = append(out, scaling.Usage{Node: u.Node, CPUMilli: u.CPUMilli, MemoryBytes: u.MemoryBytes, At: u.At})
	}
	return out
}

// known notes how things stand in the fold.
func known(o *scaling.Observation, cluster string, f *events.Fold) {
	o.Cluster, o.Known, o.CapturedAt, o.Freshness = cluster, true, f.CapturedAt, maps.Clone(f.Freshness)
}

// objects are the objects of a snapshot, or the changed ones of a delta, in the core's words.
func objects(s events.SnapshotObjects) scaling.Observation {
	return scaling.Observation{
		Nodes: each(s.Nodes, node), Classes: each(s.Classes, class), Pods: each(s.Pods, pod), Budgets: each(s.PDBs, budget),
		DaemonSets: each(s.DaemonSets, daemonSet), Records: each(s.Records, record), Namespaces: each(s.Namespaces, namespace),
	}
}

func each[A, B any](in []A, fn func(*A) B) []B {
	if len(in) == 0 {
		return nil
	}
	out := make([]B, len(in))
	for i := range in {
		out[i] = fn(&in[i])
	}
	return out
}

func sorted[V any](m map[string]V) []V {
	out := make([]V, 0, len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, m[k])
	}
	return out
}

func node(n *events.SnapshotNode) scaling.Node {
	return scaling.Node{Name: n.Name, CreatedAt: n.CreatedAt, Labels: n.Labels, Annotations: n.Annotations, Taints: taints(n.Taints),
		Unschedulable: n.Unschedulable, Ready: n.Ready == string(corev1.ConditionTrue), ReadySince: n.ReadySince,
		Deleting: n.Deleting, Allocatable: resources(n.Allocatable)}
}

func budget(b *events.SnapshotPDB) scaling.Budget {
	return scaling.Budget{Namespace: b.Namespace, Name: b.Name, Selector: selector(b.Selector), DisruptionsAllowed: b.DisruptionsAllowed}
}

func daemonSet(d *events.SnapshotDaemonSet) scaling.DaemonSet {
	return scaling.DaemonSet{Namespace: d.Namespace, Name: d.Name, Class: class(&d.Class)}
}

func namespace(n *events.SnapshotNamespace) scaling.Namespace {
	return scaling.Namespace{Name: n.Name, Labels: n.Labels}
}

func pod(p *events.SnapshotPod) scaling.Pod {
	out := scaling.Pod{Namespace: p.Namespace, Name: p.Name, Class: p.Class, Node: p.Node, NominatedNode: p.NominatedNode, Phase: p.Phase,
		CreatedAt: p.CreatedAt, Deleting: p.Deleting, Mirror: p.Mirror, Gated: p.Gated, Annotations: p.Annotations,
		UnschedulableSince: p.UnschedulableSince, VolumeProblem: p.VolumeProblem}
	if p.Owner != nil {
		out.OwnerKind, out.OwnerName = p.Owner.Kind, p.Owner.Name
	}
	for _, v := range p.LocalStorage {
		out.LocalStorage = append(out.LocalStorage, scaling.LocalVolume(v))
	}
	return out
}

func record(r *events.NodeRecord) scaling.Record {
	out := scaling.Record{Name: r.Name, Pool: r.Pool, ClaimID: r.ClaimID, Phase: r.Phase, Since: r.Since, ClaimedAt: r.ClaimedAt, ReadyAt: r.ReadyAt}
	if r.Failure != nil {
		out.Failure = r.Failure.Reason.Code + ": " + r.Failure.Reason.Message
	}
	if d := r.Drain; d != nil {
		out.Drain = &scaling.DrainRecord{Goal: d.Goal, Phase: d.Phase, RequestID: d.RequestID, Since: d.Since}
	}
	return out
}

func class(c *events.PodClass) scaling.PodClass {
	out := scaling.PodClass{ID: c.ID, Namespace: c.Namespace, Labels: c.Labels, Requests: resources(c.Requests), NodeSelector: c.NodeSelector,
		Priority: c.Priority, SchedulerName: c.SchedulerName, Unsimulated: c.Unsimulated, NeverPreempts: c.NeverPreempts,
		NodeAffinity: nodeSelectorTerms(c.NodeAffinity), PodAffinity: podTerms(c.PodAffinity), PodAntiAffinity: podTerms(c.PodAntiAffinity)}
	for _, s := range c.TopologySpread {
		out.Spread = append(out.Spread, scaling.SpreadConstraint{TopologyKey: s.TopologyKey, MaxSkew: s.MaxSkew, MinDomains: s.MinDomains,
			Selector: selectorOrNil(s.Selector), IgnoreNodeAffinity: s.IgnoreNodeAffinity, HonorTaints: s.HonorTaints})
	}
	for _, p := range c.HostPorts {
		out.HostPorts = append(out.HostPorts, scaling.HostPort{IP: p.IP, Protocol: p.Protocol, Port: p.Port})
	}
	for _, v := range c.Volumes {
		out.Volumes = append(out.Volumes, scaling.VolumeTopology{Kind: v.Kind, Terms: nodeSelectorTerms(v.Terms)})
	}
	for _, t := range c.Tolerations {
		out.Tolerations = append(out.Tolerations, corev1.Toleration{Key: t.Key, Operator: corev1.TolerationOperator(t.Operator),
			Value: t.Value, Effect: corev1.TaintEffect(t.Effect)})
	}
	return out
}

func nodeSelectorTerms(ts []events.NodeSelectorTerm) []corev1.NodeSelectorTerm {
	var out []corev1.NodeSelectorTerm
	for _, t := range ts {
		out = append(out, corev1.NodeSelectorTerm{
			MatchExpressions: nodeRequirements(t.MatchExpressions), MatchFields: nodeRequirements(t.MatchFields)})
	}
	return out
}

func podTerms(ts []events.PodAffinityTerm) []scaling.PodTerm {
	var out []scaling.PodTerm
	for _, t := range ts {
		out = append(out, scaling.PodTerm{TopologyKey: t.TopologyKey, Selector: selectorOrNil(t.Selector),
			Namespaces: t.Namespaces, NamespaceSelector: selectorOrNil(t.NamespaceSelector)})
	}
	return out
}

// selectorOrNil keeps the difference between a selector that is absent and
// selects nothing, and an empty one, which selects everything.
func selectorOrNil(s *events.Selector) *metav1.LabelSelector {
	if s == nil {
		return nil
	}
	out := selector(*s)
	return &out
}

func nodeRequirements(rs []events.Requirement) []corev1.NodeSelectorRequirement {
	var out []corev1.NodeSelectorRequirement
	for _, r := range rs {
		out = append(out, corev1.NodeSelectorRequirement{Key: r.Key, Operator: corev1.NodeSelectorOperator(r.Operator), Values: r.Values})
	}
	return out
}

func selector(s events.Selector) metav1.LabelSelector {
	out := metav1.LabelSelector{MatchLabels: s.MatchLabels}
	for _, r := range s.MatchExpressions {
		out.MatchExpressions = append(out.MatchExpressions, metav1.LabelSelectorRequirement{Key: r.Key,
			Operator: metav1.LabelSelectorOperator(r.Operator), Values: r.Values})
	}
	return out
}

func taints(ts []events.Taint) []corev1.Taint {
	var out []corev1.Taint
	for _, t := range ts {
		out = append(out, corev1.Taint{Key: t.Key, Value: t.Value, Effect: corev1.TaintEffect(t.Effect)})
	}
	return out
}

func resources(r events.Resources) scaling.Resources {
	return scaling.Resources{CPUMilli: r.CPUMilli, MemoryBytes: r.MemoryBytes, Pods: r.Pods, Extended: r.Extended}
}
