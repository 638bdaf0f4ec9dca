package collector

import (
	"reflect"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/kube"
)

// urgency is how soon a change is published; see the package comment.
type urgency int

const (
	whenever urgency = iota // with the next snapshot
	soon                    // within SoonWindow
	pressing                // within BatchWindow
)

// pending is what has changed since the last snapshot was put together.
type pending struct {
	dirty      map[ref]struct{}
	firstAt    time.Time // of any change
	soonAt     time.Time // of the first that is at least soon
	pressingAt time.Time // of the first that is pressing
	verdictAt  time.Time // of the first pod that became unschedulable
}

func newPending() pending { return pending{dirty: map[ref]struct{}{}} }

// touch notes that an object of the model has changed. c.mu is held.
func (c *Collector) touch(kind, key string, u urgency) {
	now := c.o.Clock.Now()
	p := &c.pending
	p.dirty[ref{kind, key}] = struct{}{}
	p.firstAt = earliest(p.firstAt, now)
	if u >= soon {
		p.soonAt = earliest(p.soonAt, now)
	}
	if u >= pressing {
		p.pressingAt = earliest(p.pressingAt, now)
	}
	if u >= soon {
		c.nudge()
	}
}

// nudge has the loop look what is due.
func (c *Collector) nudge() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *Collector) setNode(n *corev1.Node) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, _, differs := put(c.model.nodes, n.Name, convertNode(n)); differs {
		c.touch(events.KindNode, n.Name, pressing)
	}
	c.observe(c.watcher.set(n))
}

func (c *Collector) deleteNode(n *corev1.Node) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.model.nodes[n.Name]; ok {
		delete(c.model.nodes, n.Name)
		c.touch(events.KindNode, n.Name, pressing)
	}
	c.observe(c.watcher.gone(n.Name, c.o.Clock.Now()))
}

func (c *Collector) setPod(p *corev1.Pod) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.putPod(p)
}

func (c *Collector) deletePod(p *corev1.Pod) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dropPod(p.Namespace + "/" + p.Name)
}

// putPod converts a pod; one that has finished takes no room and is gone.
func (c *Collector) putPod(p *corev1.Pod) {
	key := p.Namespace + "/" + p.Name
	if kube.Finished(p) {
		c.dropPod(key)
		return
	}
	volumes := c.model.volumesOf(p)
	class, err := classOf(p, volumes)
	if err != nil {
		c.log.Error("pod left out of the snapshot", "pod", key, "err", err)
		c.dropPod(key)
		return
	}
	c.model.remember(key, p)
	now := convertPod(p, class.ID, func(claim string) bool { return c.model.localClaim(p, claim) })
	if p.Spec.NodeName == "" {
		now.VolumeProblem = volumes.problem
	}
	old, had, differs := put(c.model.pods, key, now)
	if !differs {
		return
	}
	c.wave.note(key, now, had, c.o.Clock.Now())
	if !had || old.Class != class.ID {
		if c.model.use(class) {
			c.touch(events.KindPodClass, class.ID, whenever)
		}
		if had && c.model.release(old.Class) {
			c.touch(events.KindPodClass, old.Class, whenever)
		}
	}
	c.touch(events.KindPod, key, podUrgency(old, now, had))
	if old.UnschedulableSince.IsZero() && !now.UnschedulableSince.IsZero() {
		c.pending.verdictAt = earliest(c.pending.verdictAt, c.o.Clock.Now())
	}
}

func (c *Collector) dropPod(key string) {
	old, ok := c.model.pods[key]
	if !ok {
		return
	}
	delete(c.model.pods, key)
	c.wave.gone(key)
	c.model.remember(key, nil)
	if c.model.release(old.Class) {
		c.touch(events.KindPodClass, old.Class, whenever)
	}
	u := soon
	if !old.UnschedulableSince.IsZero() {
		u = pressing
	}
	c.touch(events.KindPod, key, u)
}

// podUrgency judges by the scheduler's verdict: that alone asks for a node, or
// no longer does.
func podUrgency(old, now events.SnapshotPod, had bool) urgency {
	if old.UnschedulableSince.IsZero() != now.UnschedulableSince.IsZero() {
		return pressing
	}
	old.UnschedulableMessage = now.UnschedulableMessage
	if had && reflect.DeepEqual(old, now) {
		return whenever
	}
	return soon
}

func (c *Collector) setPDB(b *policyv1.PodDisruptionBudget) {
	now, covers := convertPDB(b)
	if !covers {
		c.deletePDB(b)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, _, differs := put(c.model.pdbs, now.Key(), now); differs {
		c.touch(events.KindPDB, now.Key(), soon)
	}
}

func (c *Collector) deletePDB(b *policyv1.PodDisruptionBudget) {
	c.mu.Lock()
	defer c.mu.Unlock()
	drop(c, c.model.pdbs, events.KindPDB, b.Namespace+"/"+b.Name, soon)
}

func (c *Collector) setDaemonSet(d *appsv1.DaemonSet) {
	now, err := convertDaemonSet(d)
	if err != nil {
		c.log.Error("daemonset left out of the snapshot", "daemonset", d.Namespace+"/"+d.Name, "err", err)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, _, differs := put(c.model.daemonsets, now.Key(), now); differs {
		c.touch(events.KindDaemonSet, now.Key(), soon)
	}
}

func (c *Collector) deleteDaemonSet(d *appsv1.DaemonSet) {
	c.mu.Lock()
	defer c.mu.Unlock()
	drop(c, c.model.daemonsets, events.KindDaemonSet, d.Namespace+"/"+d.Name, soon)
}

// drop removes an object from the model. c.mu is held.
func drop[T any](c *Collector, m map[string]T, kind, key string, u urgency) {
	if _, ok := m[key]; ok {
		delete(m, key)
		c.touch(kind, key, u)
	}
}
