package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

const gi = 1 << 30

var began = time.Date(2026, 2, 1, 0, 0, 0, 0, time.UTC)

// zones are where the nodes of the pools stand, in turn.
var zones = []string{"zone-1", "zone-2", "zone-3"}

// sized is a pool with nodes of so many cores and GiB.
func sized(name string, cores, memory, most int) events.PoolPolicy {
	minute := events.Duration(time.Minute)
	return events.PoolPolicy{Name: name, Provider: "docker", Max: most, Size: events.Resources{CPUMilli: int64(cores) * 1000, MemoryBytes: int64(memory) * gi, Pods: 110},
		ScaleUpCooldown: minute, ScaleDownAfterAdd: 10 * minute, ScaleDownAfterFail: 3 * minute, ScaleDownCooldown: minute, Stabilization: 5 * minute,
		UtilizationThreshold: 0.5, Unneeded: 5 * minute, MinLifetime: 10 * minute, MaxRemovals: 1, RegisterDeadline: 2 * minute, ClaimExpiry: minute,
		DrainDeadline: 2 * minute, BackoffInitial: minute, BackoffMax: 30 * minute, BackoffReset: 60 * minute}
}

func policyOf(pools ...events.PoolPolicy) events.Policy {
	return events.Policy{Pools: pools, StaleAfter: events.Duration(30 * time.Second), StartupGrace: events.Duration(time.Minute), MaxUnreadyFraction: 0.45, MaxUnreadyCount: 3}
}

func id(parts ...string) string { return events.ID(parts...) }

// serverOnly is a cluster without a node that takes pods.
func serverOnly() events.SnapshotObjects {
	return events.SnapshotObjects{Nodes: []events.SnapshotNode{{Name: "server", UID: id("server"), CreatedAt: began, Ready: "True", ReadySince: began,
		Labels:      map[string]string{corev1.LabelHostname: "server", corev1.LabelOSStable: "linux", corev1.LabelArchStable: "amd64"},
		Taints:      []events.Taint{{Key: "node-role.kubernetes.io/control-plane", Effect: "NoSchedule"}},
		Allocatable: events.Resources{CPUMilli: 4000, MemoryBytes: 8 * gi, Pods: 110}, KubeletVersion: "v1.34.4+k3s1"}}}
}

// plainClasses are Deployments that differ in what they ask for.
func plainClasses(n int) []events.PodClass {
	var out []events.PodClass
	for i := range n {
		out = append(out, events.PodClass{ID: id("class", strconv.Itoa(i)), Namespace: "apps", Labels: map[string]string{"app": "web-" + strconv.Itoa(i), "pod-template-hash": "6d4f7c9b8"},
			Requests: events.Resources{CPUMilli: int64(100 + 25*i), MemoryBytes: int64(128+32*i) << 20}})
	}
	return out
}

// waitingPods are pods of the classes in turn, which the scheduler has refused.
func waitingPods(n int, classes []events.PodClass) events.SnapshotObjects {
	o := events.SnapshotObjects{Classes: classes}
	for i := range n {
		o.Pods = append(o.Pods, waits(i, classes[i%len(classes)].ID))
	}
	return o
}

func waits(i int, class string) events.SnapshotPod {
	at := began.Add(24 * time.Hour)
	return events.SnapshotPod{Namespace: "apps", Name: fmt.Sprintf("web-%d-6d4f7c9b8-%05d", i%20, i), UID: uid(i), Class: class, Phase: "Pending", CreatedAt: at,
		Owner: &events.OwnerRef{Kind: "ReplicaSet", Name: fmt.Sprintf("web-%d-6d4f7c9b8", i%20)}, UnschedulableSince: at,
		UnschedulableMessage: "0/1 nodes are available: 1 node(s) had untolerated taint {node-role.kubernetes.io/control-plane: }. preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."}
}

func uid(i int) string { return fmt.Sprintf("2f6d9a5e-7c11-4b0e-9d43-%012d", i) }

// running is a cluster of one pool: on each node 40 pods, two of them of DaemonSets,
// one that is spread over zones, and on every fourth node one that keeps others of
// its kind off; the nodes are used by so many hundredths.
func running(nodes, used int) (events.Policy, events.SnapshotObjects) {
	const onNode, daemons = 40, 2
	p := sized("pool-0", 4, 16, nodes+1)
	p.Labels = map[string]string{"pool": "pool-0"}
	each := events.Resources{CPUMilli: p.Size.CPUMilli * int64(used) / 100 / onNode, MemoryBytes: 128 << 20}
	var o events.SnapshotObjects
	o.Nodes = serverOnly().Nodes
	for i := range daemons {
		c := events.PodClass{ID: id("daemon", strconv.Itoa(i)), Namespace: "kube-system", Labels: map[string]string{"app": "agent-" + strconv.Itoa(i)}, Requests: each}
		o.Classes = append(o.Classes, c)
		o.DaemonSets = append(o.DaemonSets, events.SnapshotDaemonSet{Namespace: "kube-system", Name: "agent-" + strconv.Itoa(i), Class: c})
	}
	apps := plainClasses(20)
	for i := range apps {
		apps[i].Requests = each
	}
	apps[0].PodAntiAffinity = []events.PodAffinityTerm{{TopologyKey: corev1.LabelHostname, Selector: &events.Selector{MatchLabels: map[string]string{"app": "web-0"}}}}
	apps[1].TopologySpread = []events.TopologySpread{{TopologyKey: corev1.LabelTopologyZone, MaxSkew: 3, Selector: &events.Selector{MatchLabels: map[string]string{"app": "web-1"}}}}
	o.Classes = append(o.Classes, apps...)
	o.Namespaces = []events.SnapshotNamespace{{Name: "apps"}, {Name: "kube-system"}}
	for i := range apps {
		o.PDBs = append(o.PDBs, events.SnapshotPDB{Namespace: "apps", Name: "web-" + strconv.Itoa(i), DisruptionsAllowed: 1, CurrentHealthy: 10, DesiredHealthy: 9,
			Selector: events.Selector{MatchLabels: map[string]string{"app": "web-" + strconv.Itoa(i)}}})
	}
	for i := range nodes {
		name, at := fmt.Sprintf("pool-0-%010d", i), began.Add(time.Duration(i*7919%nodes)*time.Minute)
		o.Nodes = append(o.Nodes, events.SnapshotNode{Name: name, UID: uid(i), CreatedAt: at, Ready: "True", ReadySince: at, KubeletVersion: "v1.34.4+k3s1",
			Labels: map[string]string{corev1.LabelHostname: name, corev1.LabelOSStable: "linux", corev1.LabelArchStable: "amd64", corev1.LabelTopologyZone: zones[i%len(zones)],
				"pool": "pool-0", events.LabelCluster: cluster, events.LabelPool: "pool-0", events.LabelClaim: id("claim", name), "node.kubernetes.io/instance-type": "k3s"},
			Capacity: p.Size, Allocatable: p.Size})
		o.Records = append(o.Records, events.NodeRecord{Name: name, Pool: "pool-0", ClaimID: id("claim", name), CorrelationID: id("life", name), Phase: "ready", Since: at, ClaimedAt: at, ReadyAt: at})
		for j := range onNode {
			pod := events.SnapshotPod{Namespace: "apps", Name: fmt.Sprintf("web-%d-6d4f7c9b8-%05d", j%20, i*onNode+j), UID: uid(i*onNode + j), Node: name, Phase: "Running", CreatedAt: at,
				Owner: &events.OwnerRef{Kind: "ReplicaSet", Name: fmt.Sprintf("web-%d-6d4f7c9b8", j%20)}}
			switch {
			case j < daemons:
				pod.Namespace, pod.Name, pod.Class = "kube-system", fmt.Sprintf("agent-%d-%05d", j, i), o.Classes[j].ID
				pod.Owner = &events.OwnerRef{Kind: "DaemonSet", Name: "agent-" + strconv.Itoa(j)}
			case j == daemons && i%4 == 0:
				pod.Class = apps[0].ID
			case j == daemons+1:
				pod.Class = apps[1].ID
			default:
				pod.Class = apps[2+j%18].ID
			}
			o.Pods = append(o.Pods, pod)
		}
	}
	return policyOf(p), o
}

// mixedPolicy has pools of twenty sizes, in three zones.
func mixedPolicy() events.Policy {
	var pools []events.PoolPolicy
	for i := range 20 {
		cores := 20 * (i + 1)
		p := sized(fmt.Sprintf("pool-%02d", i), cores, 2*cores, 5000)
		p.Size.Pods = int64(10 * cores)
		p.Labels = map[string]string{corev1.LabelTopologyZone: zones[i%len(zones)]}
		pools = append(pools, p)
	}
	out := policyOf(pools...)
	out.PoolChoice = []string{"least-nodes"}
	return out
}

// mixedPods are those of Karpenter's scheduling benchmark in its proportions, a fifth
// of each kind; every second one asks for amounts that no other does. With byHost there
// is a sixth kind, which Karpenter's benchmark had once: pods that have to be with
// those of their group on one node.
func mixedPods(n int, byHost bool) events.SnapshotObjects {
	kinds := 5
	if byHost {
		kinds = 6
	}
	r := rand.New(rand.NewPCG(7, uint64(n)))
	pick := func(of ...string) string { return of[r.IntN(len(of))] }
	label := func(key string) map[string]string {
		return map[string]string{key: pick("a", "b", "c", "d", "e", "f", "g")}
	}
	var o events.SnapshotObjects
	known := map[string]bool{}
	for i := range n {
		c := events.PodClass{Namespace: "apps", Requests: events.Resources{CPUMilli: []int64{100, 250, 500, 1000, 1500}[r.IntN(5)],
			MemoryBytes: []int64{100, 256, 512, 1024, 2048, 4096}[r.IntN(6)] << 20}}
		if i%2 == 0 {
			c.Requests.CPUMilli += int64(r.IntN(90))
			c.Requests.MemoryBytes += int64(i) << 10
		}
		switch i / 2 % kinds {
		case 0:
			c.Labels = label("my-label")
		case 1, 2:
			c.Labels = label("my-label")
			key := corev1.LabelTopologyZone
			if i/2%kinds == 2 {
				key = corev1.LabelHostname
			}
			c.TopologySpread = []events.TopologySpread{{TopologyKey: key, MaxSkew: 1, Selector: &events.Selector{MatchLabels: label("my-label")}}}
		case 3:
			c.Labels = label("my-zone-affinity")
			c.PodAffinity = []events.PodAffinityTerm{{TopologyKey: corev1.LabelTopologyZone, Selector: &events.Selector{MatchLabels: c.Labels}}}
		case 4:
			c.Labels = map[string]string{"app": "nginx"}
			c.PodAntiAffinity = []events.PodAffinityTerm{{TopologyKey: corev1.LabelHostname, Selector: &events.Selector{MatchLabels: c.Labels}}}
		case 5:
			c.Labels = label("my-affinity")
			c.PodAffinity = []events.PodAffinityTerm{{TopologyKey: corev1.LabelHostname, Selector: &events.Selector{MatchLabels: c.Labels}}}
		}
		of, err := json.Marshal(c)
		if err != nil {
			panic(err) // it is written above
		}
		c.ID = id("class", string(of))
		if !known[c.ID] {
			known[c.ID] = true
			o.Classes = append(o.Classes, c)
		}
		o.Pods = append(o.Pods, waits(i, c.ID))
	}
	return o
}
