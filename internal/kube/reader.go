package kube

import (
	"context"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/kubernetes"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// DefaultTimeout is how long one call of the API server may take.
const DefaultTimeout = 10 * time.Second

// Options of a Reader and an Actor.
type Options struct {
	// Timeout of each call. Default DefaultTimeout.
	Timeout time.Duration
	// Registerer receives autoscaler_kubernetes_api_errors_total. Nil: none.
	Registerer prometheus.Registerer
}

// Reader reads nodes and the pods on them, straight from the API server: what
// it returns is current, unlike a cache.
type Reader struct {
	client  kubernetes.Interface
	timeout time.Duration
	errors  *ErrorCounter
}

// NewReader returns a Reader. It makes no call.
func NewReader(client kubernetes.Interface, o Options) (*Reader, error) {
	if client == nil {
		return nil, fmt.Errorf("kube: client is nil")
	}
	counter, err := NewErrorCounter(o.Registerer)
	if err != nil {
		return nil, fmt.Errorf("kube: register metrics: %w", err)
	}
	if o.Timeout == 0 {
		o.Timeout = DefaultTimeout
	}
	return &Reader{client: client, timeout: o.Timeout, errors: counter}, nil
}

// call makes one call with its timeout and counts its failure.
func (r *Reader) call(ctx context.Context, verb, resource string, fn func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	err := fn(ctx)
	r.errors.Count(verb, resource, err)
	return err
}

// ServerVersion returns the API server's version, e.g. "v1.34.4+k3s1".
func (r *Reader) ServerVersion(ctx context.Context) (string, error) {
	var version string
	err := r.call(ctx, "get", "version", func(ctx context.Context) error {
		v, err := discovery.ToServerVersionInterfaceWithContext(r.client.Discovery()).ServerVersionWithContext(ctx)
		if err == nil {
			version = v.GitVersion
		}
		return err
	})
	return version, wrap(err, "read the API server's version")
}

// GetNode returns a node; ErrNotFound when there is none of that name.
func (r *Reader) GetNode(ctx context.Context, name string) (*corev1.Node, error) {
	var node *corev1.Node
	err := r.call(ctx, "get", "nodes", func(ctx context.Context) (err error) {
		node, err = r.client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
		return err
	})
	if err != nil {
		return nil, wrap(err, "read node %s", name)
	}
	return node, nil
}

// ListNodes returns every node.
func (r *Reader) ListNodes(ctx context.Context) ([]corev1.Node, error) {
	var list *corev1.NodeList
	err := r.call(ctx, "list", "nodes", func(ctx context.Context) (err error) {
		list, err = r.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
		return err
	})
	if err != nil {
		return nil, wrap(err, "list nodes")
	}
	return list.Items, nil
}

// ListOurNodes returns the nodes that carry our claim label and, where they
// name a cluster, this one.
func (r *Reader) ListOurNodes(ctx context.Context, cluster string) ([]corev1.Node, error) {
	var list *corev1.NodeList
	err := r.call(ctx, "list", "nodes", func(ctx context.Context) (err error) {
		list, err = r.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{LabelSelector: events.LabelClaim})
		return err
	})
	if err != nil {
		return nil, wrap(err, "list nodes with label %s", events.LabelClaim)
	}
	var ours []corev1.Node
	for i := range list.Items {
		if Ours(&list.Items[i], cluster) {
			ours = append(ours, list.Items[i])
		}
	}
	return ours, nil
}

// Ours reports whether a node carries a claim of ours, made for this cluster.
func Ours(node *corev1.Node, cluster string) bool {
	of := node.Labels[events.LabelCluster]
	return node.Labels[events.LabelClaim] != "" && (of == "" || of == cluster)
}

// PodsOnNode returns the pods that are bound to a node, finished ones included.
func (r *Reader) PodsOnNode(ctx context.Context, node string) ([]Pod, error) {
	var list *corev1.PodList
	err := r.call(ctx, "list", "pods", func(ctx context.Context) (err error) {
		list, err = r.client.CoreV1().Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{
			FieldSelector: fields.OneTermEqualSelector("spec.nodeName", node).String(),
		})
		return err
	})
	if err != nil {
		return nil, wrap(err, "list pods on node %s", node)
	}
	claims := map[string]bool{}
	var pods []Pod
	for i := range list.Items {
		p := &list.Items[i]
		// A simulated cluster does not know field selectors.
		if p.Spec.NodeName != node {
			continue
		}
		pods = append(pods, newPod(p, func(claim string) bool { return r.localClaim(ctx, claims, p.Namespace, claim) }))
	}
	return pods, nil
}

// localClaim looks up whether the volume behind a claim lives on the node. What
// can't be read counts as local: its data would be lost if it were.
func (r *Reader) localClaim(ctx context.Context, seen map[string]bool, ns, name string) bool {
	key := ns + "/" + name
	local, ok := seen[key]
	if !ok {
		local = r.readClaim(ctx, ns, name)
		seen[key] = local
	}
	return local
}

func (r *Reader) readClaim(ctx context.Context, ns, name string) bool {
	var claim *corev1.PersistentVolumeClaim
	err := r.call(ctx, "get", "persistentvolumeclaims", func(ctx context.Context) (err error) {
		claim, err = r.client.CoreV1().PersistentVolumeClaims(ns).Get(ctx, name, metav1.GetOptions{})
		return err
	})
	if err != nil || LocalClaim(claim) {
		return true
	}
	if claim.Spec.VolumeName == "" {
		return false
	}
	var volume *corev1.PersistentVolume
	err = r.call(ctx, "get", "persistentvolumes", func(ctx context.Context) (err error) {
		volume, err = r.client.CoreV1().PersistentVolumes().Get(ctx, claim.Spec.VolumeName, metav1.GetOptions{})
		return err
	})
	return err != nil || LocalVolume(volume)
}
