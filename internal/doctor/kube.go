package doctor

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/clock"
)

// Right is something that an identity must be allowed to do.
type Right struct{ Verb, Group, Resource, Subresource, Namespace string }

func (r Right) String() string {
	s := r.Verb + " " + r.Resource
	if r.Subresource != "" {
		s += "/" + r.Subresource
	}
	if r.Group != "" {
		s += "." + r.Group
	}
	if r.Namespace != "" {
		s += " in " + r.Namespace
	}
	return s
}

func rights(verbs, group, namespace string, resources ...string) []Right {
	var out []Right
	for _, name := range resources {
		resource, sub, _ := strings.Cut(name, "/")
		for verb := range strings.FieldsSeq(verbs) {
			out = append(out, Right{Verb: verb, Group: group, Resource: resource, Subresource: sub, Namespace: namespace})
		}
	}
	return out
}

// ReaderRights is what reading a cluster needs, ActorRights what acting on it
// needs: as deploy/kubernetes/rbac.yaml grants it.
func ReaderRights() []Right {
	return concat(
		rights("get list watch", "", "", "nodes", "pods", "persistentvolumes", "persistentvolumeclaims", "namespaces"),
		rights("get list watch", "storage.k8s.io", "", "storageclasses"),
		rights("get list watch", "apps", "", "daemonsets"),
		rights("get list watch", "policy", "", "poddisruptionbudgets"),
		rights("get list", "metrics.k8s.io", "", "nodes"),
	)
}

// ActorRights see ReaderRights.
func ActorRights() []Right {
	return concat(
		rights("get list patch delete", "", "", "nodes"),
		rights("get list", "", "", "pods", "persistentvolumeclaims", "persistentvolumes"),
		rights("create", "", "", "pods/eviction"),
		rights("list", "policy", "", "poddisruptionbudgets"),
		rights("create patch", "", "", "events"),
		rights("delete", "", "kube-system", "secrets"),
	)
}

func concat(all ...[]Right) []Right {
	var out []Right
	for _, rs := range all {
		out = append(out, rs...)
	}
	return out
}

// APIServer looks whether the API server answers a client of ours and lets it do
// what it needs. key is where the configuration names its kubeconfig.
func APIServer(ctx context.Context, client kubernetes.Interface, key string, needs []Right) []Result {
	version, err := client.Discovery().ServerVersion()
	if err != nil {
		return Failed(fmt.Errorf("ask for its version: %w", err), "see that the address in the kubeconfig of "+key+" leads to the server from here, and that its credential is still valid")
	}
	denied, err := missing(ctx, client, needs)
	if err != nil {
		return Failed(fmt.Errorf("ask what %s may do: %w", key, err), "see the API server's log")
	}
	if len(denied) > 0 {
		var names []string
		for _, r := range denied {
			names = append(names, r.String())
		}
		return []Result{{Status: Problem, Detail: fmt.Sprintf("%s may not: %s", key, strings.Join(names, ", ")), Fix: "kubectl apply -f deploy/kubernetes/rbac.yaml, with the identities that it names"}}
	}
	return []Result{{Status: OK, Detail: fmt.Sprintf("%s answers as %s and allows all %d things that are needed", key, version.GitVersion, len(needs))}}
}

// missing returns the rights that the client lacks, in the order of needs.
func missing(ctx context.Context, client kubernetes.Interface, needs []Right) ([]Right, error) {
	allowed, errs := make([]bool, len(needs)), make([]error, len(needs))
	var wg sync.WaitGroup
	for i, r := range needs {
		wg.Go(func() {
			review, err := client.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, &authorizationv1.SelfSubjectAccessReview{
				Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &authorizationv1.ResourceAttributes{
					Verb: r.Verb, Group: r.Group, Resource: r.Resource, Subresource: r.Subresource, Namespace: r.Namespace,
				}},
			}, metav1.CreateOptions{})
			if errs[i] = err; err == nil {
				allowed[i] = review.Status.Allowed
			}
		})
	}
	wg.Wait()
	var out []Right
	for i, r := range needs {
		if errs[i] != nil {
			return nil, errs[i]
		}
		if !allowed[i] {
			out = append(out, r)
		}
	}
	return out, nil
}

// MaxSkew is how far clocks may be apart before it is told: the log orders by the
// server of the bus, but certificates, leases and deadlines are compared with
// clocks.
const MaxSkew = 5 * time.Second

// ServerClock compares the clock here with the API server's, by the Date of an
// answer, which has whole seconds.
func ServerClock(ctx context.Context, client *http.Client, url string, now clock.PassiveClock) []Result {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return Failed(err, "mend the address in the kubeconfig")
	}
	before := now.Now()
	res, err := client.Do(r)
	if err != nil {
		return []Result{{Status: Skipped, Detail: "the API server does not answer: " + err.Error()}}
	}
	defer res.Body.Close()
	after := now.Now()
	server, err := http.ParseTime(res.Header.Get("Date"))
	if err != nil {
		return []Result{{Status: Skipped, Detail: "the answer of the API server has no date"}}
	}
	// Somewhere between question and answer, it was the second that Date names.
	var skew time.Duration
	switch {
	case server.After(after):
		skew = server.Sub(after)
	case server.Add(time.Second).Before(before):
		skew = server.Add(time.Second).Sub(before)
	}
	return skewed("the API server's clock", skew)
}

func skewed(whose string, skew time.Duration) []Result {
	if skew.Abs() <= MaxSkew {
		return []Result{{Status: OK, Detail: whose + " agrees with the one here"}}
	}
	by := "ahead of"
	if skew < 0 {
		by = "behind"
	}
	return []Result{{Status: Problem, Detail: fmt.Sprintf("%s is %s %s the one here", whose, skew.Abs().Round(time.Second), by), Fix: "let both machines follow a time server (timedatectl, chrony)"}}
}

// heartbeat is how often a kubelet repeats its status at the least, with slack.
const heartbeat = 6 * time.Minute

// NodeClocks compares the clocks of Ready nodes with the one here, by the last
// heartbeat that each kubelet wrote. A clock that is behind by less than a
// heartbeat's age can't be told from one that is right.
func NodeClocks(ctx context.Context, client kubernetes.Interface, now clock.PassiveClock) []Result {
	nodes, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return []Result{{Status: Skipped, Detail: "the nodes can't be listed: " + err.Error()}}
	}
	at := now.Now()
	var out []Result
	looked := 0
	for _, n := range nodes.Items {
		c := ready(n)
		if c == nil || c.Status != corev1.ConditionTrue || c.LastHeartbeatTime.IsZero() {
			continue
		}
		looked++
		switch ahead := c.LastHeartbeatTime.Sub(at); {
		case ahead > MaxSkew:
			out = append(out, skewed("the clock of node "+n.Name, ahead)...)
		case -ahead > heartbeat+MaxSkew:
			out = append(out, skewed("the clock of node "+n.Name, ahead+heartbeat)...)
		}
	}
	if len(out) == 0 {
		return []Result{{Status: OK, Detail: fmt.Sprintf("the heartbeats of %d Ready nodes agree with the clock here", looked)}}
	}
	return out
}

func ready(n corev1.Node) *corev1.NodeCondition {
	for i := range n.Status.Conditions {
		if n.Status.Conditions[i].Type == corev1.NodeReady {
			return &n.Status.Conditions[i]
		}
	}
	return nil
}
