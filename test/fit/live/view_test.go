//go:build e2e

package live

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/k3s-autoscaler/k3s-autoscaler/test/fit"
)

// view is what the API server has, by watches: asking it would take a tenth of a
// second each time, since a list waits until the server knows that nothing newer
// has been written. What this process has written itself is in the view before
// anything is read from it.
type view struct {
	pods, nodes, daemonSets, claims, namespaces, volumes, classes, budgets cache.Store

	mu       sync.Mutex
	changed  chan struct{} // closed by the next change
	latest   map[objectKey]uint64
	expected map[objectKey]expectation
}

type objectKey struct {
	store cache.Store
	key   string // "namespace/name"
}

// expectation is what a write of ours leads to: the version, or that there is no
// object with this UID any more.
type expectation struct {
	version uint64
	gone    types.UID
}

// watch starts the watches, which end with the context.
func watch(ctx context.Context, client kubernetes.Interface) (*view, error) {
	f := informers.NewSharedInformerFactory(client, 0)
	v := &view{changed: make(chan struct{}), latest: map[objectKey]uint64{}, expected: map[objectKey]expectation{}}
	var synced []cache.InformerSynced
	for to, i := range map[*cache.Store]cache.SharedIndexInformer{
		&v.pods: f.Core().V1().Pods().Informer(), &v.nodes: f.Core().V1().Nodes().Informer(), &v.daemonSets: f.Apps().V1().DaemonSets().Informer(),
		&v.claims: f.Core().V1().PersistentVolumeClaims().Informer(), &v.namespaces: f.Core().V1().Namespaces().Informer(),
		&v.volumes: f.Core().V1().PersistentVolumes().Informer(), &v.classes: f.Storage().V1().StorageClasses().Informer(),
		&v.budgets: f.Policy().V1().PodDisruptionBudgets().Informer(),
	} {
		*to = i.GetStore()
		store := i.GetStore()
		h, err := i.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc:    func(o any) { v.note(store, o) },
			UpdateFunc: func(_, o any) { v.note(store, o) },
			DeleteFunc: func(o any) { v.note(store, o) },
		})
		if err != nil {
			return nil, err
		}
		synced = append(synced, h.HasSynced)
	}
	f.StartWithContext(ctx)
	if !cache.WaitForCacheSync(ctx.Done(), synced...) {
		return nil, fmt.Errorf("the watches were not answered: %w", ctx.Err())
	}
	return v, nil
}

// note takes note of the version of an object that came, or of the one in which it
// was deleted.
func (v *view) note(store cache.Store, o any) {
	if d, ok := o.(cache.DeletedFinalStateUnknown); ok {
		o = d.Obj
	}
	m, ok := o.(metav1.Object)
	if !ok {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	k := objectKey{store, keyOf(m)}
	v.latest[k] = max(v.latest[k], version(m))
	close(v.changed)
	v.changed = make(chan struct{})
}

func version(o metav1.Object) uint64 {
	n, _ := strconv.ParseUint(o.GetResourceVersion(), 10, 64)
	return n
}

// wrote says that this process has brought the object about.
func (v *view) wrote(store cache.Store, o metav1.Object) {
	v.expect(objectKey{store, keyOf(o)}, expectation{version: version(o)})
}

// ended says that this process has deleted the object for good.
func (v *view) ended(store cache.Store, o metav1.Object) {
	v.expect(objectKey{store, keyOf(o)}, expectation{gone: o.GetUID()})
}

func (v *view) expect(k objectKey, e expectation) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.expected[k] = e
}

// behind names a write of ours that the view does not show yet, or nothing.
func (v *view) behind() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	for k, e := range v.expected {
		o, there, _ := k.store.GetByKey(k.key)
		if e.gone != "" && there && o.(metav1.Object).GetUID() == e.gone || e.gone == "" && v.latest[k] < e.version {
			return k.key
		}
		delete(v.expected, k)
	}
	return ""
}

// forget ends the notes on a case.
func (v *view) forget() {
	v.mu.Lock()
	defer v.mu.Unlock()
	clear(v.latest)
	clear(v.expected)
}

// change is closed when the view changes.
func (v *view) change() <-chan struct{} {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.changed
}

// of are the objects of a kind, by name. They belong to the view.
func of[T metav1.Object](s cache.Store) []T {
	var out []T
	for _, o := range s.List() {
		out = append(out, o.(T))
	}
	slices.SortFunc(out, func(a, b T) int { return cmp.Compare(keyOf(a), keyOf(b)) })
	return out
}

// see returns what changes while the cluster comes to rest.
func (k *cluster) see(ctx context.Context) (*fit.Case, error) {
	if err := k.eventually(ctx, "the watches show what was written", func() (bool, error) {
		if o := k.view.behind(); o != "" {
			return false, fmt.Errorf("they don't show %s yet", o)
		}
		return true, nil
	}); err != nil {
		return nil, err
	}
	c := &fit.Case{At: time.Now().UTC(), Nodes: of[*corev1.Node](k.view.nodes), Pods: of[*corev1.Pod](k.view.pods),
		DaemonSets: of[*appsv1.DaemonSet](k.view.daemonSets), Claims: of[*corev1.PersistentVolumeClaim](k.view.claims)}
	c.Pods = slices.DeleteFunc(c.Pods, func(p *corev1.Pod) bool { return p.Namespace == barrierNamespace })
	// Those that are being deleted are of a case before.
	c.Claims = slices.DeleteFunc(c.Claims, func(p *corev1.PersistentVolumeClaim) bool { return p.DeletionTimestamp != nil })
	return c, nil
}

// look returns a copy of everything that a decision looks at.
func (k *cluster) look(ctx context.Context) (*fit.Case, error) {
	c, err := k.see(ctx)
	if err != nil {
		return nil, err
	}
	c.Namespaces, c.Volumes = of[*corev1.Namespace](k.view.namespaces), of[*corev1.PersistentVolume](k.view.volumes)
	c.StorageClasses, c.Budgets = of[*storagev1.StorageClass](k.view.classes), of[*policyv1.PodDisruptionBudget](k.view.budgets)
	return c.Clone(), nil
}
