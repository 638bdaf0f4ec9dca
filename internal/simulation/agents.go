package simulation

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// defaultMaxPods is the kubelet's.
const defaultMaxPods = 110

// Agent is a k3s agent that joins as a node: what a machine runs.
type Agent struct {
	Name string
	// Password is what the machine proves its name with. The first agent of a
	// name leaves its hash in a secret; another password is rejected.
	Password string
	// CPUMilli (thousandths of a core), MemoryBytes and MaxPods (0: 110) are
	// allocatable; the host has twice as much.
	CPUMilli    int64
	MemoryBytes int64
	MaxPods     int64
	Labels      map[string]string
	Taints      []corev1.Taint
	Version     string // default: the server's

	// NeverRegisters makes an agent that runs, logs, and does not join.
	NeverRegisters bool
	// Slower multiplies the delays of joining and becoming Ready; 0 is 1.
	Slower float64
	// Log takes the lines that the agent writes. It may be nil, and must not
	// call the World.
	Log func(line string)
}

type agent struct {
	Agent
	id         string
	server     bool
	attempts   int
	registered bool // has made its Node object; it does not make it again
}

func (a *agent) log(format string, args ...any) {
	if a.Log != nil {
		a.Log(fmt.Sprintf(format, args...))
	}
}

var errAgentRuns = errors.New("an agent of this id runs already")

// StartAgent starts an agent, which joins after a while. id is the machine's; two
// machines may claim one name, of which the second is rejected.
func (w *World) StartAgent(id string, a Agent) error {
	if a.Name == "" || a.CPUMilli <= 0 || a.MemoryBytes <= 0 {
		return fmt.Errorf("start agent %q: name, cpu and memory are required", a.Name)
	}
	if a.Version == "" {
		a.Version = w.o.ServerVersion
	}
	started := &agent{Agent: a, id: id}
	w.mu.Lock()
	if w.agents[id] != nil {
		w.mu.Unlock()
		return fmt.Errorf("start agent %s: %w", a.Name, errAgentRuns)
	}
	w.agents[id] = started
	w.mu.Unlock()
	started.log("Starting k3s agent %s", a.Version)
	w.store.signal(w.store.changed)
	return nil
}

// StopAgent ends an agent. Its Node object stays, and goes NotReady. It is not
// an error when there is none.
func (w *World) StopAgent(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.agents, id)
	w.store.signal(w.store.changed)
}

// addServer makes a node that is Ready from the start.
func (w *World) addServer(a Agent) error {
	a.Labels = maps.Clone(a.Labels)
	if a.Labels == nil {
		a.Labels = map[string]string{}
	}
	a.Labels["node-role.kubernetes.io/control-plane"] = "true"
	if a.Version == "" {
		a.Version = w.o.ServerVersion
	}
	s := &agent{Agent: a, id: "server/" + a.Name, server: true, registered: true}
	if _, err := w.store.create(nodesResource, w.node(s, true), false); err != nil {
		return err
	}
	w.agents[s.id] = s
	return nil
}

// agentsByID returns the running agents in a stable order.
func (w *World) agentsByID() []*agent {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []*agent
	for _, id := range slices.Sorted(maps.Keys(w.agents)) {
		all = append(all, w.agents[id])
	}
	return all
}

// runAgents lets agents join and report. Only the goroutine that holds pass
// changes an agent.
func (w *World) runAgents() {
	for _, a := range w.agentsByID() {
		slower := max(a.Slower, 0)
		if slower == 0 {
			slower = 1
		}
		scale := func(d int64) int64 { return int64(float64(d) * slower) }
		if !a.registered {
			delay := w.o.Delays.Join.Nanoseconds()
			if a.attempts > 0 {
				delay = w.o.Delays.RetryJoin.Nanoseconds()
			}
			if a.NeverRegisters || !w.elapsed(fmt.Sprintf("join/%s/%d", a.id, a.attempts), durationOf(scale(delay))) {
				continue
			}
			if err := w.register(a); err != nil {
				a.attempts++
				a.log("Waiting to retrieve agent configuration; server is not ready: %v", err)
				continue
			}
			a.registered = true
			a.log("Running kubelet --hostname-override=%s", a.Name)
		}
		node, err := w.store.get(nodesResource, key{name: a.Name})
		if err != nil { // somebody has deleted it: a running kubelet does not notice
			continue
		}
		n := node.(*corev1.Node) //nolint:forcetypeassert // the resource holds nothing else
		if !nodeReady(n) && w.elapsed("ready/"+a.id+"/"+string(n.UID), durationOf(scale(w.o.Delays.Ready.Nanoseconds()))) {
			w.modifyReady(n.Name, corev1.ConditionTrue)
			a.log("Node %s is ready", a.Name)
		}
	}
}

var (
	errPasswordRejected = errors.New("Node password rejected, duplicate hostname or contents of '/etc/rancher/node/password' may not match server node-passwd entry") //nolint:staticcheck // k3s' own words
	errLabelRefused     = errors.New("is not allowed to set the label")
)

func (w *World) register(a *agent) error {
	for _, k := range slices.Sorted(maps.Keys(a.Labels)) {
		if strings.HasPrefix(k, "node-role.kubernetes.io/") || strings.HasPrefix(k, "node-restriction.kubernetes.io/") {
			return fmt.Errorf("node %q %w %s", a.Name, errLabelRefused, k)
		}
	}
	sum := sha256.Sum256([]byte(a.Password))
	hash := hex.EncodeToString(sum[:])
	immutable := true
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: a.Name + ".node-password.k3s"},
		Immutable:  &immutable, Type: corev1.SecretTypeOpaque, Data: map[string][]byte{"hash": []byte(hash)},
	}
	if _, err := w.store.create(secretsResource, secret, false); apierrors.IsAlreadyExists(err) {
		found, err := w.store.get(secretsResource, keyOf(secret))
		if err != nil {
			return err
		}
		if s, ok := found.(*corev1.Secret); !ok || string(s.Data["hash"]) != hash {
			return errPasswordRejected
		}
	} else if err != nil {
		return err
	}
	_, err := w.store.create(nodesResource, w.node(a, false), false)
	if apierrors.IsAlreadyExists(err) { // a restarted agent takes its node up again
		return nil
	}
	return err
}

// node is what an agent registers.
func (w *World) node(a *agent, isReady bool) *corev1.Node {
	labels := map[string]string{
		corev1.LabelHostname: a.Name, corev1.LabelOSStable: "linux", corev1.LabelArchStable: "amd64",
		corev1.LabelInstanceTypeStable: "k3s",
	}
	maps.Copy(labels, a.Labels)
	pods := a.MaxPods
	if pods == 0 {
		pods = defaultMaxPods
	}
	amounts := func(cpu, memory int64) corev1.ResourceList {
		return corev1.ResourceList{
			corev1.ResourceCPU:    *resource.NewMilliQuantity(cpu, resource.DecimalSI),
			corev1.ResourceMemory: *resource.NewQuantity(memory, resource.BinarySI),
			corev1.ResourcePods:   *resource.NewQuantity(pods, resource.DecimalSI),
		}
	}
	n := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: a.Name, Labels: labels},
		Spec:       corev1.NodeSpec{ProviderID: "k3s://" + a.Name, Taints: slices.Clone(a.Taints)},
		Status: corev1.NodeStatus{
			Capacity:    amounts(2*a.CPUMilli, 2*a.MemoryBytes),
			Allocatable: amounts(a.CPUMilli, a.MemoryBytes),
			Addresses:   []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: a.Name}},
			NodeInfo:    corev1.NodeSystemInfo{KubeletVersion: a.Version, OperatingSystem: "linux", Architecture: "amd64"},
		},
	}
	setNodeReady(n, map[bool]corev1.ConditionStatus{true: corev1.ConditionTrue, false: corev1.ConditionFalse}[isReady], w.now())
	return n
}
