package doctor

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// DefaultNetworkImage has a shell, httpd and wget; k3s itself uses it.
const DefaultNetworkImage = "rancher/mirrored-library-busybox:1.36.1"

// Network is a try of the pod network between a node that was there and one of
// ours: a pod on each, one asks the other.
type Network struct {
	Client    kubernetes.Interface // may create, read and delete pods, and read their logs
	Namespace string               // default "default"
	Image     string               // default DefaultNetworkImage
	Poll      time.Duration        // default 500 ms
	ID        string               // tells the pods of two tries apart
}

const networkPort = 8080

// Run tries it. The pods are removed again, whatever comes of it.
func (n Network) Run(ctx context.Context) []Result {
	if n.Namespace == "" {
		n.Namespace = metav1.NamespaceDefault
	}
	if n.Image == "" {
		n.Image = DefaultNetworkImage
	}
	if n.Poll <= 0 {
		n.Poll = 500 * time.Millisecond
	}
	nodes, err := n.Client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return Failed(fmt.Errorf("list nodes: %w", err), "see the credential that was given for this check")
	}
	old, young, why := pair(nodes.Items)
	if why != "" {
		return []Result{{Status: Skipped, Detail: why}}
	}
	between := fmt.Sprintf("%s and %s", old, young)
	server := n.pod("server", young, fmt.Sprintf("mkdir /tmp/w && echo reached > /tmp/w/index.html && exec httpd -f -p %d -h /tmp/w", networkPort))
	defer n.remove(ctx, server.Name)
	at, err := n.start(ctx, server, func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodRunning && p.Status.PodIP != "" })
	if err != nil {
		return n.failed(between, fmt.Errorf("pod on %s: %w", young, err))
	}
	client := n.pod("client", old, fmt.Sprintf("wget -T 5 -q -O - http://%s/", hostPort(at.Status.PodIP)))
	defer n.remove(ctx, client.Name)
	ended, err := n.start(ctx, client, func(p *corev1.Pod) bool {
		return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
	})
	if err != nil {
		return n.failed(between, fmt.Errorf("pod on %s that asks the one on %s: %w", old, young, err))
	}
	if ended.Status.Phase == corev1.PodFailed {
		return n.failed(between, fmt.Errorf("a pod on %s does not reach one on %s (%s): %s", old, young, at.Status.PodIP, n.log(ctx, client.Name)))
	}
	return []Result{{Status: OK, Target: between, Detail: fmt.Sprintf("a pod on %s reaches one on %s", old, young)}}
}

func hostPort(ip string) string {
	if strings.Contains(ip, ":") {
		ip = "[" + ip + "]"
	}
	return fmt.Sprintf("%s:%d", ip, networkPort)
}

func (n Network) failed(between string, err error) []Result {
	return []Result{{Target: between, Status: Problem, Detail: err.Error(),
		Fix: "the hosts must reach each other on UDP 8472 (flannel's VXLAN) or 51820 (WireGuard), and agents in containers need the address that the others see (--node-ip, --flannel-iface, or network: host)"}}
}

// pair picks the node that was there first and is not ours, and the youngest of
// ours; both Ready.
func pair(nodes []corev1.Node) (old, young, why string) {
	var theirs, ours []corev1.Node
	for _, n := range nodes {
		c := ready(n)
		switch {
		case c == nil || c.Status != corev1.ConditionTrue || n.Spec.Unschedulable:
		case n.Labels[events.LabelClaim] != "":
			ours = append(ours, n)
		default:
			theirs = append(theirs, n)
		}
	}
	byAge := func(a, b corev1.Node) int {
		if c := a.CreationTimestamp.Compare(b.CreationTimestamp.Time); c != 0 {
			return c
		}
		return strings.Compare(a.Name, b.Name)
	}
	slices.SortFunc(ours, byAge)
	slices.SortFunc(theirs, byAge)
	if len(ours) == 0 {
		return "", "", "no node of ours is Ready and schedulable: try again when one is, e.g. after k3s-autoscaler scale up"
	}
	young = ours[len(ours)-1].Name
	switch {
	case len(theirs) > 0:
		return theirs[0].Name, young, ""
	case len(ours) > 1:
		return ours[0].Name, young, ""
	}
	return "", "", "there is no second node that is Ready and schedulable"
}

func (n Network) pod(role, node, script string) *corev1.Pod {
	grace := int64(0)
	no := false
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "k3s-autoscaler-doctor-" + role + "-" + n.ID, Namespace: n.Namespace,
			Labels: map[string]string{"app.kubernetes.io/name": "k3s-autoscaler-doctor"}},
		Spec: corev1.PodSpec{
			NodeName: node, RestartPolicy: corev1.RestartPolicyNever, TerminationGracePeriodSeconds: &grace, AutomountServiceAccountToken: &no,
			Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
			Containers:  []corev1.Container{{Name: role, Image: n.Image, Command: []string{"sh", "-c", script}}},
		},
	}
}

// start creates a pod and waits until it is as wanted.
func (n Network) start(ctx context.Context, p *corev1.Pod, wanted func(*corev1.Pod) bool) (*corev1.Pod, error) {
	pods := n.Client.CoreV1().Pods(n.Namespace)
	if _, err := pods.Create(ctx, p, metav1.CreateOptions{}); err != nil {
		return nil, fmt.Errorf("create it: %w", err)
	}
	tick := time.NewTicker(n.Poll)
	defer tick.Stop()
	var last *corev1.Pod
	for {
		now, err := pods.Get(ctx, p.Name, metav1.GetOptions{})
		switch {
		case ctx.Err() != nil:
		case err != nil:
			return nil, fmt.Errorf("look at it: %w", err)
		case wanted(now):
			return now, nil
		case now.Status.Phase == corev1.PodFailed:
			return nil, fmt.Errorf("it failed: %s", cmp.Or(now.Status.Message, now.Status.Reason, "no reason is given"))
		default:
			last = now
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("it does not come to its end in time, it is %s", state(last))
		case <-tick.C:
		}
	}
}

// state says how far a pod is, and what it waits for.
func state(p *corev1.Pod) string {
	if p == nil {
		return "unknown"
	}
	s := strings.ToLower(string(p.Status.Phase))
	for _, c := range p.Status.ContainerStatuses {
		if w := c.State.Waiting; w != nil {
			s += ", waits: " + strings.TrimSuffix(w.Reason+": "+w.Message, ": ")
		}
	}
	return cmp.Or(s, "not started")
}

// log is the end of a pod's output, or why it can't be had.
func (n Network) log(ctx context.Context, name string) string {
	lines := int64(5)
	stream, err := n.Client.CoreV1().Pods(n.Namespace).GetLogs(name, &corev1.PodLogOptions{TailLines: &lines}).Stream(ctx)
	if err != nil {
		return "its log can't be read: " + err.Error()
	}
	defer stream.Close()
	b, err := io.ReadAll(io.LimitReader(stream, 4096))
	if err != nil {
		return "its log can't be read: " + err.Error()
	}
	return cmp.Or(strings.TrimSpace(string(b)), "its log is empty")
}

// remove deletes a pod, also when the time is up.
func (n Network) remove(ctx context.Context, name string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	grace := int64(0)
	// It may never have been made; the garbage collector takes what stays on a lost node.
	_ = n.Client.CoreV1().Pods(n.Namespace).Delete(ctx, name, metav1.DeleteOptions{GracePeriodSeconds: &grace})
}
