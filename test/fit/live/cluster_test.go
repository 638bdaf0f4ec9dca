//go:build e2e

package live

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/k3s-autoscaler/k3s-autoscaler/test/fit"
)

// cluster is the real one.
type cluster struct {
	kubernetes.Interface
	metrics  string // address of the scheduler's
	http     *http.Client
	barriers int

	runtimes map[string]bool // RuntimeClasses that are there
	// leaving are pods that terminate for as long as the case lasts, and held says
	// that those that the scheduler pushes off do so, too.
	leaving map[string]bool
	held    bool
	ready   bool // pods that are on nodes become Ready
}

// Namespaces of the cases, and of what settles them.
var namespaces = []string{"shop", "ops", barrierNamespace}

// Priority classes by what they say.
const (
	classFirst      = "fit-first"
	classExpendable = "fit-expendable"
	classNever      = "fit-never"
)

// eventually repeats check until it says that it is so.
func eventually(ctx context.Context, what string, check func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		ok, err := check()
		if ok && err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("%s: not within %s", what, patience), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// all does something to each of many at once.
func all[T any](of []T, do func(T) error) error {
	errs := make([]error, len(of))
	slots := make(chan struct{}, 16)
	var wg sync.WaitGroup
	for i, o := range of {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			errs[i] = do(o)
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func there(err error) error {
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}

func gone(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// prepare makes what all cases share.
func (k *cluster) prepare(ctx context.Context) error {
	k.runtimes = map[string]bool{}
	for _, n := range namespaces {
		_, err := k.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: n, Labels: map[string]string{"kind": n}}}, metav1.CreateOptions{})
		if there(err) != nil {
			return err
		}
		if err := eventually(ctx, "namespace "+n+" has its service account", func() (bool, error) {
			_, err := k.CoreV1().ServiceAccounts(n).Get(ctx, "default", metav1.GetOptions{})
			return err == nil, err
		}); err != nil {
			return err
		}
	}
	for _, c := range []*schedulingv1.PriorityClass{
		{ObjectMeta: metav1.ObjectMeta{Name: classFirst}, Value: fit.NominatedFirst},
		{ObjectMeta: metav1.ObjectMeta{Name: classExpendable}, Value: fit.Expendable},
		{ObjectMeta: metav1.ObjectMeta{Name: classNever}, Value: 0, PreemptionPolicy: new(corev1.PreemptNever)},
	} {
		if _, err := k.SchedulingV1().PriorityClasses().Create(ctx, c, metav1.CreateOptions{}); there(err) != nil {
			return err
		}
	}
	return nil
}

// leave removes what all cases share.
func (k *cluster) leave(ctx context.Context) error {
	var errs []error
	for _, n := range namespaces {
		errs = append(errs, gone(k.CoreV1().Namespaces().Delete(ctx, n, metav1.DeleteOptions{})))
	}
	for _, c := range []string{classFirst, classExpendable, classNever} {
		errs = append(errs, gone(k.SchedulingV1().PriorityClasses().Delete(ctx, c, metav1.DeleteOptions{})))
	}
	for r := range k.runtimes {
		errs = append(errs, gone(k.NodeV1().RuntimeClasses().Delete(ctx, r, metav1.DeleteOptions{})))
	}
	for _, n := range namespaces {
		errs = append(errs, eventually(ctx, "namespace "+n+" is gone", func() (bool, error) {
			_, err := k.CoreV1().Namespaces().Get(ctx, n, metav1.GetOptions{})
			return apierrors.IsNotFound(err), gone(err)
		}))
	}
	return errors.Join(errs...)
}

// runtime returns the name of the RuntimeClass with the overhead: pods can't
// state one by themselves.
func (k *cluster) runtime(ctx context.Context, overhead corev1.ResourceList) (string, error) {
	name := strings.ToLower(fmt.Sprintf("fit-%d-%d", overhead.Cpu().MilliValue(), overhead.Memory().Value()))
	if k.runtimes[name] {
		return name, nil
	}
	c := &nodev1.RuntimeClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Handler: "fit", Overhead: &nodev1.Overhead{PodFixed: overhead}}
	if _, err := k.NodeV1().RuntimeClasses().Create(ctx, c, metav1.CreateOptions{}); there(err) != nil {
		return "", err
	}
	k.runtimes[name] = true
	// Admission knows it by a watch: a pod that comes at once may be refused.
	probe := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "runtime"}, Spec: corev1.PodSpec{RuntimeClassName: &name, Containers: []corev1.Container{{Name: "main", Image: image}}}}
	return name, eventually(ctx, "RuntimeClass "+name+" is known", func() (bool, error) {
		_, err := k.CoreV1().Pods(barrierNamespace).Create(ctx, probe, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		return err == nil, err
	})
}

// clear removes everything of the last case. Nodes, pods and DaemonSets are gone
// then; claims and volumes, which no later case looks at, go in their own time.
func (k *cluster) clear(ctx context.Context) error {
	now, background := int64(0), metav1.DeletePropagationBackground
	at := metav1.DeleteOptions{GracePeriodSeconds: &now, PropagationPolicy: &background}
	each := metav1.ListOptions{}
	k.leaving, k.held = nil, false
	calls := []func() error{
		func() error { return k.CoreV1().Nodes().DeleteCollection(ctx, at, each) },
		func() error {
			return k.CoordinationV1().Leases(corev1.NamespaceNodeLease).DeleteCollection(ctx, at, each)
		},
	}
	for _, n := range namespaces {
		calls = append(calls,
			func() error { return k.AppsV1().DaemonSets(n).DeleteCollection(ctx, at, each) },
			func() error { return k.PolicyV1().PodDisruptionBudgets(n).DeleteCollection(ctx, at, each) })
	}
	if err := list(calls...); err != nil {
		return err
	}
	if err := eventually(ctx, "the case is gone", func() (bool, error) {
		// A controller may have made one more before it knew.
		c, err := k.see(ctx)
		if err != nil {
			return false, err
		}
		if len(c.Pods) > 0 {
			err = all(namespaces, func(n string) error { return k.CoreV1().Pods(n).DeleteCollection(ctx, at, each) })
		}
		return len(c.Pods)+len(c.Nodes)+len(c.DaemonSets) == 0, err
	}); err != nil {
		return err
	}
	calls = []func() error{
		func() error { return k.CoreV1().PersistentVolumes().DeleteCollection(ctx, at, each) },
		func() error { return k.StorageV1().StorageClasses().DeleteCollection(ctx, at, each) },
	}
	for _, n := range namespaces {
		calls = append(calls, func() error { return k.CoreV1().PersistentVolumeClaims(n).DeleteCollection(ctx, at, each) })
	}
	return list(calls...)
}

// beat renews the leases of the nodes until the end, as their kubelets would:
// otherwise they would be taken for dead.
func (k *cluster) beat(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			k.renew(ctx)
			select {
			case <-ctx.Done():
				return
			case <-time.After(3 * time.Second):
			}
		}
	}()
	return func() { cancel(); <-done }
}

// renew does what it can: a lease that is missed is renewed the next time.
func (k *cluster) renew(ctx context.Context) {
	nodes, err := k.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return
	}
	leases := k.CoordinationV1().Leases(corev1.NamespaceNodeLease)
	now := metav1.NowMicro()
	_ = all(nodes.Items, func(n corev1.Node) error {
		l, err := leases.Get(ctx, n.Name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			_, err = leases.Create(ctx, &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: n.Name}, Spec: coordinationv1.LeaseSpec{HolderIdentity: &n.Name, RenewTime: &now}}, metav1.CreateOptions{})
			return err
		}
		if err != nil {
			return err
		}
		l.Spec.RenewTime = &now
		_, err = leases.Update(ctx, l, metav1.UpdateOptions{})
		return err
	})
}

func keyOf(o metav1.Object) string { return o.GetNamespace() + "/" + o.GetName() }

func pointers[T any](in []T) []*T {
	out := make([]*T, len(in))
	for i := range in {
		out[i] = &in[i]
	}
	return slices.Clip(out)
}
