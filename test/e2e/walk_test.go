//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/test/env"
	"github.com/k3s-autoscaler/k3s-autoscaler/test/env/faults"
)

const (
	walkSeed  = "WALK_SEED"  // a number; absent: a fresh one, which is printed
	walkTime  = "WALK_TIME"  // how long the walk takes, without the quiet after it
	walkSteps = "WALK_STEPS" // at least so many steps, however long that takes
	walkMax   = 5            // nodes of the pool
)

// Whatever happens to nodes, machines, the engine, the API server and the product's
// own process: once it is quiet, everybody agrees on what there is, nothing is left
// over, and the audit knows why.
func TestAfterARandomWalkEverybodyAgreesAndNothingIsLeft(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv(walkSeed); s != "" {
		var err error
		seed, err = strconv.ParseUint(s, 10, 64)
		require.NoError(t, err, walkSeed)
	}
	limit, steps := 6*time.Minute, 0
	if s := os.Getenv(walkTime); s != "" {
		var err error
		limit, err = time.ParseDuration(s)
		require.NoError(t, err, walkTime)
	}
	if s := os.Getenv(walkSteps); s != "" {
		var err error
		steps, err = strconv.Atoi(s)
		require.NoError(t, err, walkSteps)
	}
	t.Logf("%s=%d", walkSeed, seed)
	w := newWalk(t, seed)
	began := time.Now()
	for n := 0; time.Since(began) < limit || n < steps; n++ {
		w.step()
		// Some steps meet what the one before has begun, others its end.
		time.Sleep(time.Duration(w.rng.Int64N(int64(3 * time.Second))))
	}
	t.Logf("%d steps in %.0f s: %v", w.taken, time.Since(began).Seconds(), w.counts)
	w.calm()
	w.agree()
	w.nothingIsLeft()
	w.auditExplains()
}

// walk is the world of one random walk.
type walk struct {
	t       *testing.T
	rng     *rand.Rand
	p       *product
	ns      string
	docker  *faults.Docker
	door    *env.Door
	pool    pool
	foreign string   // id of a machine that is not ours
	volumes []string // that were there before
	taken   int
	counts  map[string]int
	budget  bool

	machines *machineLog
	mu       sync.Mutex
	byHand   map[string]bool // names of nodes whose object or machine the test itself removed
	deleted  map[string]bool // names of Node objects that vanished
}

func newWalk(t *testing.T, seed uint64) *walk {
	w := &walk{t: t, rng: rand.New(rand.NewPCG(seed, 0)), counts: map[string]int{}, byHand: map[string]bool{}, deleted: map[string]bool{}}
	w.pool = pool{Min: 1, Max: walkMax, DrainLimit: "15s", Register: "20s", Extra: "        claim_expiry: 60s\n        repair: {after: 30s}\n",
		Top: "reconcile: {every: 5s, grace: 10s}\n"}
	w.p = newProduct(t, "e2e-walk", w.pool)
	w.ns = namespace(t, w.p.cluster)
	foreignNode(t, "e2e-walk-foreign", "nobody")
	in, err := engine.ContainerInspect(context.Background(), "e2e-walk-foreign")
	require.NoError(t, err)
	w.foreign, w.volumes = in.ID, volumeNames(t)
	w.docker, err = faults.NewDocker(world.DockerHost)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, w.docker.Close()) })
	w.door, err = world.OpenDoor(context.Background(), w.p.cluster)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, w.door.Remove(context.Background())) })
	w.machines = watchMachines(t, w.p.cluster)
	w.actAsServer()
	w.pool.Engine = w.docker.Host()
	w.p.reader, w.p.actor = w.p.dir+"/reader.kubeconfig", w.p.dir+"/actor.kubeconfig"
	require.NoError(t, w.door.Kubeconfig(world.ReaderKubeconfig, w.p.reader))
	require.NoError(t, w.door.Kubeconfig(world.ActorKubeconfig, w.p.actor))
	w.p.writeConfig(w.pool)
	w.p.start()
	eventually(t, 60*time.Second, "the pool has its minimum", readyNodes(t, w.p, 1))
	deployment(t, w.ns, "web", w.p.cluster, 3, "200m")
	return w
}

// actAsServer makes what a k3s server makes for each node that joins, and notes the
// Node objects that vanish.
func (w *walk) actAsServer() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	w.t.Cleanup(func() { cancel(); <-done })
	go func() {
		defer close(done)
		known := map[string]bool{}
		for ctx.Err() == nil {
			list, err := admin.CoreV1().Nodes().List(ctx, metav1.ListOptions{LabelSelector: events.LabelCluster + "=" + w.p.cluster})
			if err == nil {
				now := map[string]bool{}
				for _, n := range list.Items {
					now[n.Name] = true
					if !known[n.Name] {
						_, err := admin.CoreV1().Secrets(metav1.NamespaceSystem).Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: n.Name + ".node-password.k3s"}}, metav1.CreateOptions{})
						if err != nil && !apierrors.IsAlreadyExists(err) && ctx.Err() == nil {
							w.t.Errorf("make the password of node %s: %v", n.Name, err)
						}
					}
				}
				w.mu.Lock()
				for n := range known {
					if !now[n] {
						w.deleted[n] = true
					}
				}
				w.mu.Unlock()
				known = now
			}
			select {
			case <-ctx.Done():
			case <-time.After(200 * time.Millisecond):
			}
		}
	}()
}

// step takes one step at random.
func (w *walk) step() {
	w.t.Helper()
	all := []struct {
		name   string
		weight int
		do     func() string // what was done; "": nothing could be
	}{
		{"load", 8, w.load},
		{"request", 6, w.request},
		{"node", 6, w.askForNode},
		{"kill agent", 4, w.killAgent},
		{"remove machine", 2, w.removeMachine},
		{"delete node", 3, w.deleteNode},
		{"engine away", 3, w.engineAway},
		{"reply lost", 4, w.replyLost},
		{"engine refuses", 2, w.engineRefuses},
		{"API server away", 3, w.serverAway},
		{"restart", 3, w.restart},
		{"kill", 3, w.kill},
		{"configure", 2, w.reconfigure},
		{"pause", 2, w.pause},
		{"budget", 2, w.protect},
	}
	total := 0
	for _, s := range all {
		total += s.weight
	}
	at := w.rng.IntN(total)
	for _, s := range all {
		if at -= s.weight; at >= 0 {
			continue
		}
		doing.Store(w.t.Name(), "step "+strconv.Itoa(w.taken)+": "+s.name)
		if what := s.do(); what != "" {
			w.taken++
			w.counts[s.name]++
			w.t.Logf("%s %3d %s: %s", time.Now().Format("15:04:05"), w.taken, s.name, what)
		}
		break
	}
	select {
	case <-w.p.exited:
		w.t.Fatalf("the product ended by itself: %s", w.p.cmd.ProcessState)
	default:
	}
}

// say calls the product as a person; a refusal is an answer, too.
func (w *walk) say(args ...string) string {
	out, errOut, err := w.p.cli(args...)
	if err != nil {
		return fmt.Sprintf("%s: %s", strings.Join(args, " "), firstLine(errOut))
	}
	return fmt.Sprintf("%s: %s", strings.Join(args, " "), firstLine(out))
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return line
}

func (w *walk) load() string {
	n := int32(w.rng.IntN(2*walkMax + 1))
	scaleDeployment(w.t, w.ns, "web", n)
	return fmt.Sprintf("%d pods", n)
}

func (w *walk) request() string {
	count := strconv.Itoa(1 + w.rng.IntN(2))
	switch w.rng.IntN(3) {
	case 0:
		return w.say("scale", "up", "--pool", "burst", "--count", count, "--reason", "walk")
	case 1:
		return w.say("scale", "down", "--pool", "burst", "--count", count, "--reason", "walk")
	}
	return w.say("scale", "to", "--pool", "burst", "--count", strconv.Itoa(w.rng.IntN(walkMax+1)), "--reason", "walk")
}

// anyNode is one of our Node objects, "" when there is none.
func (w *walk) anyNode() string {
	names, _ := ourNodes(w.t, w.p.cluster)
	if len(names) == 0 {
		return ""
	}
	slices.Sort(names)
	return names[w.rng.IntN(len(names))]
}

func (w *walk) askForNode() string {
	node := w.anyNode()
	if node == "" {
		return ""
	}
	verb := []string{"cordon", "uncordon", "drain", "remove", "remove"}[w.rng.IntN(5)]
	return w.say(verb, node, "--reason", "walk")
}

// anyMachine is a machine of ours, running or not; false when there is none.
func (w *walk) anyMachine() (container.Summary, bool) {
	list := containers(w.t, w.p.cluster)
	if len(list) == 0 {
		return container.Summary{}, false
	}
	slices.SortFunc(list, func(a, b container.Summary) int { return strings.Compare(a.Names[0], b.Names[0]) })
	return list[w.rng.IntN(len(list))], true
}

func (w *walk) hand(node string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.byHand[node] = true
}

func (w *walk) killAgent() string {
	m, ok := w.anyMachine()
	if !ok {
		return ""
	}
	if err := engine.ContainerKill(context.Background(), m.ID, "SIGKILL"); err != nil {
		return "" // it is not running
	}
	return m.Names[0]
}

func (w *walk) removeMachine() string {
	m, ok := w.anyMachine()
	if !ok {
		return ""
	}
	w.hand(strings.TrimPrefix(m.Names[0], "/"))
	if err := engine.ContainerRemove(context.Background(), m.ID, container.RemoveOptions{Force: true, RemoveVolumes: true}); err != nil {
		return ""
	}
	return m.Names[0]
}

func (w *walk) deleteNode() string {
	node := w.anyNode()
	if node == "" {
		return ""
	}
	w.hand(node)
	if err := admin.CoreV1().Nodes().Delete(context.Background(), node, metav1.DeleteOptions{}); err != nil {
		return ""
	}
	return node
}

// for a while: long enough for calls to be tried again, and often shorter.
func (w *walk) aWhile() time.Duration {
	return 200*time.Millisecond + time.Duration(w.rng.Int64N(int64(5*time.Second)))
}

func (w *walk) engineAway() string {
	d := w.aWhile()
	require.NoError(w.t, w.docker.Down())
	time.Sleep(d)
	require.NoError(w.t, w.docker.Up())
	return d.String()
}

func (w *walk) replyLost() string {
	f := faults.Fault{Method: "POST", Times: 1 + w.rng.IntN(3), Cut: faults.CutAfter}
	f.Path = []string{"^/containers/create$", "^/containers/[^/]+/start$", "^/containers/[^/]+/stop$", "^/containers/"}[w.rng.IntN(4)]
	if w.rng.IntN(4) == 0 {
		f.Method, f.Path = "DELETE", "^/containers/"
	}
	if w.rng.IntN(3) == 0 {
		f.Cut = faults.CutBefore
	}
	w.docker.Inject(f)
	return fmt.Sprintf("%s %s, %d times", f.Method, f.Path, f.Times)
}

func (w *walk) engineRefuses() string {
	f := faults.Fault{Method: "POST", Path: "^/containers/create$", Times: 1, Status: 500, Message: "no space left on device"}
	w.docker.Inject(f)
	return f.Message
}

func (w *walk) serverAway() string {
	d := w.aWhile()
	require.NoError(w.t, w.door.Cut(context.Background()))
	time.Sleep(d)
	require.NoError(w.t, w.door.Heal(context.Background()))
	return d.String()
}

func (w *walk) restart() string {
	w.p.stop()
	w.p.start()
	return "ended and started"
}

func (w *walk) kill() string {
	require.NoError(w.t, w.p.cmd.Process.Signal(syscall.SIGKILL))
	<-w.p.exited
	w.p.log.Close()
	w.p.start()
	return "killed and started"
}

func (w *walk) reconfigure() string {
	w.pool.Min, w.pool.Max = w.rng.IntN(3), walkMax-w.rng.IntN(2)
	w.pool.Unneeded = []string{"1s", "2s", "5s"}[w.rng.IntN(3)]
	w.p.stop()
	w.p.writeConfig(w.pool)
	w.p.start()
	return fmt.Sprintf("min %d, max %d, unneeded %s", w.pool.Min, w.pool.Max, w.pool.Unneeded)
}

func (w *walk) pause() string {
	return w.say("pause", "burst", "--for", "5s", "--reason", "walk")
}

// protect forbids evictions, or allows them again.
func (w *walk) protect() string {
	if w.budget {
		w.unprotect()
		return "evictions are allowed"
	}
	budget(w.t, w.ns, "web", 2*walkMax)
	w.budget = true
	return "no eviction is allowed"
}

func (w *walk) unprotect() {
	err := admin.PolicyV1().PodDisruptionBudgets(w.ns).Delete(context.Background(), "web", metav1.DeleteOptions{})
	require.NoError(w.t, err)
	w.budget = false
}

// calm ends what the walk began: faults, budgets, what people asked to be kept.
func (w *walk) calm() {
	w.t.Helper()
	if w.budget {
		w.unprotect()
	}
	w.docker.Clear()
	scaleDeployment(w.t, w.ns, "web", 3)
	eventually(w.t, time.Minute, "people take back what they asked for", func() error {
		if _, errOut, err := w.p.cli("resume", "burst", "--reason", "quiet"); err != nil && !strings.Contains(errOut, "not paused") {
			return fmt.Errorf("resume: %s", errOut)
		}
		list, err := admin.CoreV1().Nodes().List(context.Background(), metav1.ListOptions{LabelSelector: events.LabelCluster + "=" + w.p.cluster})
		if err != nil {
			return err
		}
		for _, n := range list.Items {
			if n.Spec.Unschedulable {
				_, _, _ = w.p.cli("uncordon", n.Name, "--reason", "quiet") // it may be leaving
			}
		}
		return nil
	})
}
