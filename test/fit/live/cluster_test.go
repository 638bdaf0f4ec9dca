//go:build e2e

package live

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

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
	view      *view
	framework *fit.Scheduler
	metrics   string // address of the scheduler's
	http      *http.Client
	barriers  int

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

// eventually repeats check until it says that it is so: whenever the view has
// changed, and now and then, since not everything is in it.
func (k *cluster) eventually(ctx context.Context, what string, check func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		changed := k.view.change()
		ok, err := check()
		if ok && err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("%s: not within %s", what, patience), err)
		case <-changed:
		case <-time.After(10 * time.Millisecond):
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
		if err := k.eventually(ctx, "namespace "+n+" has its service account", func() (bool, error) {
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
		errs = append(errs, k.eventually(ctx, "namespace "+n+" is gone", func() (bool, error) {
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
	return name, k.eventually(ctx, "RuntimeClass "+name+" is known", func() (bool, error) {
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
	}
	for _, n := range namespaces {
		calls = append(calls,
			func() error { return k.AppsV1().DaemonSets(n).DeleteCollection(ctx, at, each) },
			func() error { return k.PolicyV1().PodDisruptionBudgets(n).DeleteCollection(ctx, at, each) })
	}
	if err := list(calls...); err != nil {
		return err
	}
	if err := k.eventually(ctx, "the case is gone", func() (bool, error) {
		// A controller may have made one more before it knew.
		c, err := k.see(ctx)
		if err != nil {
			return false, err
		}
		return len(c.Pods)+len(c.Nodes)+len(c.DaemonSets) == 0, all(c.Pods, func(p *corev1.Pod) error { return k.end(ctx, p) })
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
	k.view.forget()
	return list(calls...)
}

// deleteNode deletes a node that the case has.
func (k *cluster) deleteNode(ctx context.Context, c *fit.Case, name string) error {
	if err := k.CoreV1().Nodes().Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
		return fmt.Errorf("delete node %s: %w", name, err)
	}
	k.view.ended(k.view.nodes, node(c, name))
	return nil
}

// list makes calls at once.
func list(of ...func() error) error { return all(of, func(one func() error) error { return one() }) }

func keyOf(o metav1.Object) string { return o.GetNamespace() + "/" + o.GetName() }
