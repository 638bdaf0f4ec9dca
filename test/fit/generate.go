package fit

import (
	"fmt"
	"math/rand/v2"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/scaling"
)

var (
	zones = []string{"zone-a", "zone-b", "zone-c"}
	disks = []string{"ssd", "hdd"}
	apps  = []string{"web", "db", "cache", "batch"}
)

const (
	labelDisk = "example.com/disk"
	labelRack = "example.com/rack"
	labelGen  = "example.com/generation"
	taintTeam = "example.com/team"
)

// generator makes one case. Of every constraint it decides first whether the
// case has it at all, so that no case is a heap of everything.
type generator struct {
	*rand.Rand
	c      *Case
	has    map[string]bool
	prefix string // of all names but those of pools and namespaces
}

// Generate makes the case of a seed.
func Generate(seed uint64) *Case { return GenerateNamed(seed, "") }

// GenerateNamed makes the case of a seed with a prefix to the names of what is in
// it, so that nothing of a case is taken for something of another.
func GenerateNamed(seed uint64, prefix string) *Case {
	g := &generator{Rand: rand.New(rand.NewPCG(seed, 2026)), c: &Case{Seed: seed}, has: map[string]bool{}, prefix: prefix}
	for _, c := range Constraints {
		g.has[c.Name] = g.chance(c.share)
	}
	for _, n := range []string{"shop", "ops"} {
		g.c.Namespaces = append(g.c.Namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: n, UID: types.UID(n),
			Labels: map[string]string{corev1.LabelMetadataName: n, "kind": n}}})
	}
	g.c.Has = g.has
	g.pools()
	g.nodes()
	g.daemonSets()
	g.bound()
	g.waiting()
	return g.c
}

func (g *generator) chance(p float64) bool { return g.Float64() < p }

func pick[T any](g *generator, of ...T) T { return of[g.IntN(len(of))] }

// some reports whether this pod or node has the constraint.
func (g *generator) some(constraint string, p float64) bool { return g.has[constraint] && g.chance(p) }

func (g *generator) between(low, high int) int { return low + g.IntN(high-low+1) }

// pools are of one size in a case: otherwise how many nodes it takes would say
// nothing.
func (g *generator) pools() {
	size := scaling.Resources{CPUMilli: 4000, MemoryBytes: 8 * gi}
	if g.chance(0.3) {
		size = scaling.Resources{CPUMilli: 2000, MemoryBytes: 4 * gi}
	}
	for i := range g.between(1, 3) {
		p := scaling.Pool{Name: fmt.Sprintf("pool-%d", i), Provider: "p", Max: 40, Size: size, Labels: map[string]string{}}
		if g.chance(0.85) {
			p.Labels[corev1.LabelTopologyZone] = pick(g, zones...)
		}
		if g.chance(0.7) {
			p.Labels[labelDisk] = pick(g, disks...)
		}
		if g.chance(0.5) {
			p.Labels[labelGen] = fmt.Sprint(g.between(1, 4))
		}
		if g.chance(0.5) {
			p.Labels[labelRack] = fmt.Sprintf("rack-%d", g.between(1, 4))
		}
		if g.some("extended resources", 0.5) {
			p.Size.Extended = map[string]int64{gpu: int64(g.between(1, 4))}
		}
		if g.some("max pods", 0.8) {
			p.Size.Pods = int64(g.between(2, 5))
		}
		if g.some("taints", 0.5) {
			p.Taints = append(p.Taints, g.taint())
		}
		g.c.Pools = append(g.c.Pools, p)
	}
}

func (g *generator) taint() corev1.Taint {
	return corev1.Taint{Key: taintTeam, Value: pick(g, "red", "blue"),
		Effect: pick(g, corev1.TaintEffectNoSchedule, corev1.TaintEffectNoExecute, corev1.TaintEffectPreferNoSchedule)}
}

// nodes are some of the pools and some that people have made.
func (g *generator) nodes() {
	for i := range g.between(1, 5) {
		name := fmt.Sprintf("%snode-%d", g.prefix, i)
		if g.chance(0.5) {
			p := pick(g, g.c.Pools...)
			claim := "claim-" + name
			g.c.Nodes = append(g.c.Nodes, NewNode(p, name, claim))
			g.c.Records = append(g.c.Records, Record(p.Name, name, claim))
			continue
		}
		p := scaling.Pool{Size: scaling.Resources{CPUMilli: int64(g.between(1, 4)) * 1000, MemoryBytes: int64(g.between(2, 8)) * gi}, Labels: map[string]string{}}
		if g.chance(0.85) {
			p.Labels[corev1.LabelTopologyZone] = pick(g, zones...)
		}
		if g.chance(0.6) {
			p.Labels[labelDisk] = pick(g, disks...)
		}
		if g.chance(0.5) {
			p.Labels[labelRack] = fmt.Sprintf("rack-%d", g.between(1, 4))
		}
		if g.some("max pods", 0.5) {
			p.Size.Pods = int64(g.between(2, 8))
		}
		if g.some("extended resources", 0.3) {
			p.Size.Extended = map[string]int64{gpu: int64(g.between(1, 4))}
		}
		n := NewNode(p, name, "")
		for _, l := range []string{scaling.LabelCluster, scaling.LabelPool, scaling.LabelClaim} {
			delete(n.Labels, l)
		}
		if g.some("taints", 0.4) {
			n.Spec.Taints = append(n.Spec.Taints, g.taint())
		}
		g.c.Nodes = append(g.c.Nodes, n)
	}
}

func (g *generator) daemonSets() {
	if !g.has["DaemonSets"] {
		return
	}
	for i := range g.between(1, 2) {
		d := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Namespace: "ops", Name: fmt.Sprintf("%sagent-%d", g.prefix, i), UID: types.UID(fmt.Sprintf("agent-%d", i))}}
		d.Spec.Template.Labels = map[string]string{"app": d.Name}
		spec := g.spec(int64(g.between(2, 8))*100, int64(g.between(1, 8))*128*mi)
		if g.chance(0.3) {
			spec.NodeSelector = map[string]string{labelDisk: pick(g, disks...)}
		}
		if g.chance(0.7) {
			spec.Tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists}}
		}
		if g.some("host ports", 0.5) {
			spec.Containers[0].Ports = []corev1.ContainerPort{g.port()}
		}
		d.Spec.Template.Spec = spec
		g.c.DaemonSets = append(g.c.DaemonSets, d)
	}
	for _, n := range g.c.Nodes {
		for _, p := range g.c.DaemonPods(n) {
			if g.chance(0.8) {
				p.Spec.NodeName, p.Status.Phase = n.Name, corev1.PodRunning
			}
			g.c.Pods = append(g.c.Pods, p)
		}
	}
}

func (g *generator) spec(cpu, memory int64) corev1.PodSpec {
	priority := int32(0)
	return corev1.PodSpec{SchedulerName: corev1.DefaultSchedulerName, Priority: &priority, RestartPolicy: corev1.RestartPolicyAlways,
		Containers: []corev1.Container{{Name: "main", Resources: corev1.ResourceRequirements{Requests: amounts(cpu, memory)}}}}
}

func (g *generator) port() corev1.ContainerPort {
	p := corev1.ContainerPort{HostPort: int32(8000 + g.IntN(3)), ContainerPort: 80, Protocol: pick(g, corev1.ProtocolTCP, corev1.ProtocolTCP, corev1.ProtocolUDP)}
	if g.chance(0.3) {
		p.HostIP = pick(g, "127.0.0.1", "10.0.0.1", "0.0.0.0")
	}
	return p
}

// bound are pods that run. What keeps others away counts, whether the pod would
// be put where it is today or not.
func (g *generator) bound() {
	for i, n := range g.c.Nodes {
		cpu, slots := n.Status.Allocatable.Cpu().MilliValue(), n.Status.Allocatable.Pods().Value()
		for _, p := range g.c.Pods {
			if p.Spec.NodeName == n.Name {
				slots--
			}
		}
		for j := 0; cpu > 300 && slots > 1 && g.chance(0.8) && j < 6; j++ {
			ask := min(int64(g.between(1, 10))*100, cpu)
			p := g.pod(fmt.Sprintf("running-%d-%d", i, j), g.group(ask, int64(g.between(1, 6))*128*mi, true))
			p.Spec.NodeName, p.Status.Phase = n.Name, corev1.PodRunning
			p.Spec.SchedulingGates = nil
			if g.some("expendable pods", 0.5) {
				low := int32(Expendable)
				p.Spec.Priority = &low
			}
			if g.chance(0.05) {
				now := metav1.NewTime(Now)
				p.DeletionTimestamp = &now
			}
			cpu -= ask
			slots--
			g.c.Pods = append(g.c.Pods, p)
		}
	}
}

// waiting are pods that the scheduler has refused, in groups as of a Deployment.
func (g *generator) waiting() {
	for i := range g.between(1, 5) {
		template := g.group(int64(g.between(1, 18))*100, int64(g.between(1, 20))*128*mi, false)
		for j := range g.between(1, 6) {
			p := g.pod(fmt.Sprintf("waiting-%d-%d", i, j), template)
			if g.has["volumes by node"] || g.has["volume zones"] || g.has["allowed topologies"] {
				g.volume(p)
			}
			g.c.Pods = append(g.c.Pods, p)
		}
	}
	for i := range g.c.Nodes {
		if g.some("nominated nodes", 0.5) {
			p := g.pod(fmt.Sprintf("nominated-%d", i), corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Labels: map[string]string{"app": pick(g, apps...)}},
				Spec: g.spec(int64(g.between(5, 20))*100, int64(g.between(4, 16))*128*mi)})
			first := int32(NominatedFirst)
			p.Spec.Priority, p.Status.NominatedNodeName = &first, g.c.Nodes[i].Name
			g.c.Pods = append(g.c.Pods, p)
		}
	}
}

func (g *generator) pod(name string, template corev1.Pod) *corev1.Pod {
	p := template.DeepCopy()
	name = g.prefix + name
	p.Name, p.UID, p.ResourceVersion = name, types.UID(name), "1"
	p.CreationTimestamp = metav1.NewTime(Now.Add(-1e9))
	p.Status.Phase = corev1.PodPending
	if len(p.Spec.SchedulingGates) == 0 {
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: corev1.PodReasonUnschedulable,
			LastTransitionTime: p.CreationTimestamp}}
	}
	p.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "of-" + p.Labels["app"], UID: "of", Controller: new(true)}}
	return p
}

// group is what the pods of one Deployment have in common.
func (g *generator) group(cpu, memory int64, runs bool) corev1.Pod {
	p := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: pick(g, "shop", "shop", "ops"), Labels: map[string]string{"app": pick(g, apps...)}}, Spec: g.spec(cpu, memory)}
	s := &p.Spec
	if g.chance(0.3) {
		p.Labels["version"] = pick(g, "1", "2")
	}
	if g.some("init containers", 0.6) {
		s.InitContainers = append(s.InitContainers, corev1.Container{Name: "init", Resources: corev1.ResourceRequirements{
			Requests: amounts(int64(g.between(5, 35))*100, int64(g.between(2, 50))*128*mi)}})
	}
	if g.some("sidecars", 0.6) {
		c := corev1.Container{Name: "sidecar", RestartPolicy: new(corev1.ContainerRestartPolicyAlways),
			Resources: corev1.ResourceRequirements{Requests: amounts(int64(g.between(1, 15))*100, int64(g.between(1, 10))*128*mi)}}
		if g.some("host ports", 0.3) {
			c.Ports = []corev1.ContainerPort{g.port()}
		}
		s.InitContainers = append(s.InitContainers, c)
		if g.chance(0.5) { // before or after the init container makes a difference
			slices.Reverse(s.InitContainers)
		}
	}
	if g.some("overhead", 0.6) {
		s.Overhead = amounts(int64(g.between(2, 12))*100, int64(g.between(1, 8))*128*mi)
	}
	if g.some("extended resources", 0.5) {
		s.Containers[0].Resources.Requests[gpu] = *resource.NewQuantity(int64(g.between(1, 2)), resource.DecimalSI)
	}
	if g.some("ephemeral storage", 0.7) {
		s.Containers[0].Resources.Requests[disk] = *resource.NewQuantity(int64(g.between(2, 45))*gi, resource.BinarySI)
	}
	if g.some("node selectors", 0.6) {
		s.NodeSelector = map[string]string{pick(g, labelDisk, labelDisk, corev1.LabelTopologyZone): ""}
		for k := range s.NodeSelector {
			s.NodeSelector[k] = pick(g, "ssd", "hdd")
			if k == corev1.LabelTopologyZone {
				s.NodeSelector[k] = pick(g, zones...)
			}
		}
	}
	if g.some("taints", 0.6) {
		s.Tolerations = append(s.Tolerations, g.toleration())
	}
	if g.some("host ports", 0.5) {
		s.Containers[0].Ports = append(s.Containers[0].Ports, g.port())
	}
	s.Affinity = &corev1.Affinity{}
	if g.some("node affinity", 0.6) {
		s.Affinity.NodeAffinity = g.nodeAffinity()
	}
	if g.some("pod affinity", 0.4) {
		s.Affinity.PodAffinity = &corev1.PodAffinity{RequiredDuringSchedulingIgnoredDuringExecution: g.terms(p.Labels["app"], 0.6)}
	}
	if g.some("pod anti-affinity", 0.45) {
		s.Affinity.PodAntiAffinity = &corev1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: g.terms(p.Labels["app"], 0.6)}
	}
	if g.some("topology spread", 0.6) {
		s.TopologySpreadConstraints = g.spread(p.Labels)
	}
	if runs {
		return p
	}
	if g.some("scheduling gates", 0.35) {
		s.SchedulingGates = []corev1.PodSchedulingGate{{Name: "example.com/quota"}}
	}
	if g.some("other schedulers", 0.35) {
		s.SchedulerName = "example-scheduler"
	}
	if g.some("expendable pods", 0.25) {
		if g.chance(0.5) {
			s.PreemptionPolicy = new(corev1.PreemptNever)
		} else {
			s.Priority = new(int32(Expendable))
		}
	}
	return p
}

func (g *generator) toleration() corev1.Toleration {
	t := corev1.Toleration{Key: taintTeam, Operator: corev1.TolerationOpEqual, Value: pick(g, "red", "blue")}
	if g.chance(0.3) {
		t.Operator, t.Value = corev1.TolerationOpExists, ""
	}
	if g.chance(0.4) {
		t.Effect = pick(g, corev1.TaintEffectNoSchedule, corev1.TaintEffectNoExecute)
	}
	return t
}

func (g *generator) nodeAffinity() *corev1.NodeAffinity {
	var terms []corev1.NodeSelectorTerm
	for range g.between(1, 2) {
		var t corev1.NodeSelectorTerm
		for range g.between(1, 2) {
			r := corev1.NodeSelectorRequirement{Key: labelDisk, Operator: pick(g, corev1.NodeSelectorOpIn, corev1.NodeSelectorOpNotIn), Values: []string{pick(g, disks...)}}
			switch g.IntN(6) {
			case 0:
				r = corev1.NodeSelectorRequirement{Key: labelGen, Operator: pick(g, corev1.NodeSelectorOpGt, corev1.NodeSelectorOpLt), Values: []string{fmt.Sprint(g.between(1, 4))}}
			case 1:
				r = corev1.NodeSelectorRequirement{Key: pick(g, labelDisk, labelGen), Operator: pick(g, corev1.NodeSelectorOpExists, corev1.NodeSelectorOpDoesNotExist)}
			case 2, 3:
				r = corev1.NodeSelectorRequirement{Key: corev1.LabelTopologyZone, Operator: corev1.NodeSelectorOpIn, Values: []string{pick(g, zones...), pick(g, zones...)}}
			}
			t.MatchExpressions = append(t.MatchExpressions, r)
		}
		if g.chance(0.1) {
			t.MatchFields = []corev1.NodeSelectorRequirement{{Key: metav1.ObjectNameField, Operator: pick(g, corev1.NodeSelectorOpIn, corev1.NodeSelectorOpNotIn),
				Values: []string{pick(g, g.c.Nodes...).Name}}}
		}
		terms = append(terms, t)
	}
	return &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: terms}}
}

func (g *generator) topologyKey() string {
	return pick(g, corev1.LabelHostname, corev1.LabelHostname, corev1.LabelTopologyZone, corev1.LabelTopologyZone, labelRack)
}

func (g *generator) selects(app string, own float64) *metav1.LabelSelector {
	if !g.chance(own) {
		app = pick(g, apps...)
	}
	s := &metav1.LabelSelector{MatchLabels: map[string]string{"app": app}}
	switch g.IntN(10) {
	case 0:
		s = &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "app", Operator: metav1.LabelSelectorOpIn, Values: []string{app, pick(g, apps...)}}}}
	case 1:
		s = &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "version", Operator: pick(g, metav1.LabelSelectorOpExists, metav1.LabelSelectorOpDoesNotExist)}}}
	}
	return s
}

func (g *generator) terms(app string, own float64) []corev1.PodAffinityTerm {
	var out []corev1.PodAffinityTerm
	for range g.between(1, 1+g.IntN(2)) {
		t := corev1.PodAffinityTerm{TopologyKey: g.topologyKey(), LabelSelector: g.selects(app, own)}
		switch g.IntN(5) {
		case 0:
			t.Namespaces = []string{pick(g, "shop", "ops")}
		case 1:
			t.NamespaceSelector = pick(g, &metav1.LabelSelector{}, &metav1.LabelSelector{MatchLabels: map[string]string{"kind": "shop"}})
		}
		out = append(out, t)
	}
	return out
}

func (g *generator) spread(labels map[string]string) []corev1.TopologySpreadConstraint {
	var out []corev1.TopologySpreadConstraint
	for _, key := range []string{corev1.LabelTopologyZone, corev1.LabelHostname, labelRack} {
		if !g.chance(0.4) {
			continue
		}
		c := corev1.TopologySpreadConstraint{TopologyKey: key, MaxSkew: int32(g.between(1, 2)), WhenUnsatisfiable: corev1.DoNotSchedule, LabelSelector: g.selects(labels["app"], 0.85)}
		if g.chance(0.2) {
			c.MinDomains = new(int32(g.between(2, 4)))
		}
		if g.chance(0.3) {
			c.NodeAffinityPolicy = new(pick(g, corev1.NodeInclusionPolicyHonor, corev1.NodeInclusionPolicyIgnore))
		}
		if g.chance(0.3) {
			c.NodeTaintsPolicy = new(pick(g, corev1.NodeInclusionPolicyHonor, corev1.NodeInclusionPolicyIgnore))
		}
		if v, ok := labels["version"]; ok && g.chance(0.4) {
			// The API server has merged them into the selector.
			c.MatchLabelKeys = []string{"version"}
			c.LabelSelector.MatchExpressions = append(c.LabelSelector.MatchExpressions, metav1.LabelSelectorRequirement{Key: "version", Operator: metav1.LabelSelectorOpIn, Values: []string{v}})
		}
		out = append(out, c)
	}
	return out
}
