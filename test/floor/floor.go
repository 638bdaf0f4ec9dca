// Package floor is the least that could be called an autoscaler: it watches pods,
// puts those that the scheduler refused on nodes that it knows, first fit, and calls
// the provider for the rest. Nothing is stored, explained, held back or looked at
// again. What its latency leaves out is what the product's is measured against.
//
// It shows as well why such a thing does not do: a pod that took the room bought for
// another leaves that one waiting for good, because nothing looks again.
package floor

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
)

// Options say where the floor works. All are required.
type Options struct {
	Client    kubernetes.Interface
	Namespace string
	Provider  string // URL to which a node is posted
	CPUMilli  int64  // of a node
}

// node is one that was bought.
type node struct {
	Name string `json:"name"`
	free int64
}

// Run works until ctx ends. ready is called when the watch is open.
func Run(ctx context.Context, o Options, ready func()) error {
	pods := o.Client.CoreV1().Pods(o.Namespace)
	list, err := pods.List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list pods: %w", err)
	}
	w, err := pods.Watch(ctx, metav1.ListOptions{ResourceVersion: list.ResourceVersion, FieldSelector: fields.OneTermEqualSelector("spec.nodeName", "").String()})
	if err != nil {
		return fmt.Errorf("watch pods: %w", err)
	}
	defer w.Stop()
	ready()
	var nodes []*node
	served := map[types.UID]bool{}
	for e := range w.ResultChan() {
		p, ok := e.Object.(*corev1.Pod)
		if !ok || e.Type == watch.Deleted || served[p.UID] || !refused(p) {
			continue
		}
		served[p.UID] = true
		need := requests(p)
		if place(nodes, need) {
			continue
		}
		n := &node{Name: fmt.Sprint("floor-", len(nodes)), free: o.CPUMilli - need}
		nodes = append(nodes, n)
		if err := buy(ctx, o.Provider, n); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// refused reports whether the scheduler found no place for the pod.
func refused(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse && c.Reason == corev1.PodReasonUnschedulable {
			return true
		}
	}
	return false
}

func requests(p *corev1.Pod) (milli int64) {
	for _, c := range p.Spec.Containers {
		milli += c.Resources.Requests.Cpu().MilliValue()
	}
	return milli
}

func place(nodes []*node, need int64) bool {
	for _, n := range nodes {
		if n.free >= need {
			n.free -= need
			return true
		}
	}
	return false
}

func buy(ctx context.Context, url string, n *node) error {
	body, err := json.Marshal(n)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("buy node %s: %w", n.Name, err)
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}
