package scenarios

import (
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// scenario is a complaint about other autoscalers, and a situation in which this
// one is asked the same.
type scenario struct {
	title     string
	complaint string   // in a sentence
	links     []string // owner/repository#number
	situation string   // in two lines
	scaleDown string   // keys of the pool's scale_down; the rest is as by default
	// happen brings it about and returns what 'explain' is asked for.
	happen func(w *world) (subject string)
}

// quick lets nodes go early, for scenarios that need several removals.
const quick = "unneeded: 1m, delay_after_add: 1m, cooldown: 10s, stabilization: 1m, min_lifetime: 1m"

var scenarios = []scenario{
	{title: "Why did it not scale up?", complaint: "A pod stays pending and nothing says why no node comes.",
		links:     []string{"kubernetes/autoscaler#4613", "kubernetes/autoscaler#6474"},
		situation: "A pod asks for 4 CPU. A node of the only pool has 2, so no number of nodes would help.",
		happen: func(w *world) string {
			w.pod("ml", "train-0", "", 4000)
			w.pass(10 * time.Second)
			return "pod/ml/train-0"
		}},
	{title: "Stuck at a limit, silently", complaint: "The pool is full, pods wait, and it looks as if all were well.",
		links:     []string{"lupinelab/kproximate#18"},
		situation: "The pool has its 3 nodes, all of them busy. Two more pods need a node.",
		happen: func(w *world) string {
			for _, n := range []string{"burst-a", "burst-b", "burst-c"} {
				w.node(n, "burst", 2000)
				w.pod("shop", "busy-on-"+n, n, 1800)
			}
			w.pod("shop", "busy", "server", 1800)
			w.pods("shop", "web", "", 1500, 2)
			w.pass(10 * time.Second)
			return "burst"
		}},
	{title: "Why was this node deleted?", complaint: "A node is gone, and its reason is in a log that is gone as well.",
		links:     []string{"kubernetes-sigs/karpenter#2332", "kubernetes-sigs/karpenter#2582", "aws/karpenter-provider-aws#6254"},
		situation: "A node with one small pod has been idle. It was drained and removed; days later somebody asks for it by its name.",
		happen: func(w *world) string {
			w.node("burst-a", "burst", 2000)
			w.pod("shop", "web-0", "burst-a", 200)
			w.leave(until[events.NodeDrainRequested](w, time.Hour))
			return "node/burst-a"
		}},
	{title: "Flapping: the node comes back at once", complaint: "Nodes are removed and bought again, over and over.",
		links:     []string{"kubernetes/autoscaler#581", "kubernetes/autoscaler#1471", "kubernetes-sigs/karpenter#1019", "kubernetes-sigs/karpenter#2388", "rancher/rancher#52665"},
		situation: "Three times a node was removed as idle, and three times pods needed one again minutes later. Now the last one is idle.",
		scaleDown: quick,
		happen: func(w *world) string {
			for range 3 {
				w.pods("ci", "job", "", 1900, 2)
				w.join(until[events.NodeClaimed](w, time.Minute))
				w.gone("job")
				w.leave(until[events.NodeDrainRequested](w, 10*time.Minute))
				w.pass(time.Minute)
			}
			w.pods("ci", "job", "", 1900, 2)
			w.join(until[events.NodeClaimed](w, time.Minute))
			w.gone("job")
			w.pass(5 * time.Minute)
			return "burst"
		}},
	{title: "A drain stuck on a PodDisruptionBudget", complaint: "A node is cordoned and then waits for a budget that never allows anything.",
		links:     []string{"kubernetes-sigs/karpenter#2802", "kubernetes-sigs/karpenter#1789"},
		situation: "An idle node has a database pod whose budget allows no disruption. This is looked at before anything is cordoned.",
		happen: func(w *world) string {
			w.node("burst-a", "burst", 2000)
			w.pod("shop", "db-0", "burst-a", 200)
			w.objects.PDBs = []events.SnapshotPDB{{Namespace: "shop", Name: "db", Selector: events.Selector{MatchLabels: map[string]string{"app": "db-0"}},
				CurrentHealthy: 1, DesiredHealthy: 1}}
			w.pass(10 * time.Minute)
			return "node/burst-a"
		}},
	{title: "One drain blocks everything", complaint: "While a node drains, nothing else is decided.",
		links:     []string{"hashicorp/nomad-autoscaler#672", "hashicorp/nomad-autoscaler#879"},
		situation: "A person removes a node, which takes its time. Meanwhile pods need room: a node is added all the same.",
		happen: func(w *world) string {
			w.node("burst-a", "burst", 2000)
			w.pod("shop", "db-0", "burst-a", 1000)
			w.pod("shop", "busy", "server", 900)
			w.look()
			w.say("api", events.ScaleRequested{Action: events.ActionRemove, Node: "burst-a", Actor: "ada", Reason: "its disk is old", ExpiresAt: w.now.Add(time.Hour)})
			w.pass(10 * time.Second)
			w.pods("shop", "web", "", 1500, 1)
			until[events.ScaleupDecided](w, time.Minute)
			return "burst"
		}},
	{title: "Capacity by hand", complaint: "There is no way to ask for nodes ahead of a load, with a name and a reason to it.",
		links:     []string{"kubernetes-sigs/karpenter#749"},
		situation: "`k3s-autoscaler scale up --pool burst --count 2 --reason \"Friday's sale\"`, and later a look at that request.",
		happen: func(w *world) string {
			id := w.say("api", events.ScaleRequested{Action: events.ActionUp, Pool: "burst", Count: 2, Actor: "ada", Reason: "Friday's sale", ExpiresAt: w.now.Add(2 * time.Hour)})
			w.pass(10 * time.Second)
			return id
		}},
	{title: "CI jobs killed", complaint: "A build is evicted in its last minute because its node looked idle.",
		links:     []string{"kubernetes/autoscaler#7095", "kubernetes/autoscaler#8196", "kubernetes/autoscaler#4048", "kubernetes-sigs/karpenter#3185"},
		situation: "A node runs one job that asks for little, and is annotated as not safe to evict.",
		happen: func(w *world) string {
			w.node("burst-a", "burst", 2000)
			w.pod("ci", "build-17", "burst-a", 300, func(p *events.SnapshotPod, _ *events.PodClass) {
				p.Owner = &events.OwnerRef{Kind: "Job", Name: "build"}
				p.Annotations = map[string]string{"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}
			})
			w.pass(10 * time.Minute)
			return "node/burst-a"
		}},
	{title: "Opaque blockers", complaint: "Idle nodes stay for days, and which pod keeps each of them is a riddle.",
		links:     []string{"kubernetes/autoscaler#64", "kubernetes/autoscaler#3753", "kubernetes/autoscaler#6417"},
		situation: "Three idle nodes: one has a pod without a controller, one a pod with data in an emptyDir, one carries an annotation.",
		happen: func(w *world) string {
			for _, n := range []string{"burst-a", "burst-b", "burst-c"} {
				w.node(n, "burst", 2000)
			}
			w.pod("shop", "debug", "burst-a", 100, func(p *events.SnapshotPod, _ *events.PodClass) { p.Owner = nil })
			w.pod("shop", "cache-0", "burst-b", 100, func(p *events.SnapshotPod, _ *events.PodClass) {
				p.LocalStorage = []events.LocalVolume{{Name: "data", Kind: events.LocalEmptyDir}}
			})
			w.objects.Nodes[len(w.objects.Nodes)-1].Annotations = map[string]string{"cluster-autoscaler.kubernetes.io/scale-down-disabled": "true"}
			w.pass(10 * time.Minute)
			return "burst"
		}},
	{title: "A missing metric scales to the minimum", complaint: "The source of the figures fails, the figure reads as zero, and the nodes go.",
		links:     []string{"kedacore/keda#3065", "kedacore/keda#7475"},
		situation: "A node is idle, as far as is known: the collector no longer sees the pods of the cluster.",
		happen: func(w *world) string {
			w.node("burst-a", "burst", 2000)
			w.look()
			w.unknown = events.KindPod
			w.pass(10 * time.Minute)
			return "burst"
		}},
	{title: "Backoff, invisible or stuck", complaint: "After a failure the pool is left alone, nobody says so, and nothing ends it.",
		links:     []string{"kubernetes/autoscaler#4992"},
		situation: "A node was asked for, and its image could not be pulled. The pod that needs it still waits.",
		happen: func(w *world) string {
			w.pods("shop", "web", "", 1900, 1)
			w.pod("shop", "busy", "server", 1800)
			c := until[events.NodeClaimed](w, time.Minute)
			w.objects.Records = append(w.objects.Records, events.NodeRecord{Name: c.Node, Pool: c.Pool, ClaimID: c.ClaimID, Phase: "failed", Since: w.now, ClaimedAt: c.ClaimedAt,
				Failure: &events.Failure{Stage: "claimed", At: w.now, Reason: events.Reason{Code: "ImageUnavailable", Message: "pull image rancher/k3s:v1.34.4-k3s1: no route to host"}}})
			w.pass(10 * time.Second)
			return "burst"
		}},
	{title: "No pause", complaint: "To work on the machines one has to switch the autoscaler off, and to remember to switch it on.",
		links:     []string{"kubernetes/autoscaler#1443", "kubernetes/autoscaler#1976", "kedacore/keda#944"},
		situation: "`k3s-autoscaler pause burst --for 2h --reason \"new switch\"`; then a pod needs a node.",
		happen: func(w *world) string {
			w.say("api", events.PoolPaused{Pool: "burst", Actor: "ada", Reason: "new switch", Until: w.now.Add(2 * time.Hour)})
			w.pass(10 * time.Second)
			w.pod("shop", "busy", "server", 1800)
			w.pods("shop", "web", "", 1500, 1)
			w.pass(10 * time.Second)
			return "pod/shop/web-0"
		}},
}
