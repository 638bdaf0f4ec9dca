package collector

import (
	"context"
	"fmt"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

// source is the informer of one kind of object, and what is known of how
// current its cache is. An informer hides outages (it lists and watches again
// by itself), so that the calls it makes are observed here.
type source struct {
	c        *Collector
	resource string
	informer cache.SharedIndexInformer
	handled  cache.DoneChecker // all objects of the first list have been handled
	watched  chan struct{}     // closed when the watch first delivers

	mu         sync.Mutex // guards what follows
	generation int        // of the watch
	open       bool       // the watch delivers
	freshAt    time.Time
	err        error // why it is not open, when that is known
}

// listable is what a typed client offers of a resource.
type listable[L runtime.Object] interface {
	List(ctx context.Context, opts metav1.ListOptions) (L, error)
	Watch(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error)
}

func (c *Collector) newSources() ([]*source, error) {
	core, all := c.o.Client.CoreV1(), metav1.NamespaceAll
	var out []*source
	for _, add := range []func() (*source, error){
		func() (*source, error) {
			return newSource(c, "nodes", &corev1.Node{}, core.Nodes(), "", trimNode, c.setNode, c.deleteNode)
		},
		func() (*source, error) {
			// Finished pods take no room: the server need not send them.
			return newSource(c, "pods", &corev1.Pod{}, core.Pods(all), "status.phase!=Succeeded,status.phase!=Failed", trimPod, c.setPod, c.deletePod)
		},
		func() (*source, error) {
			return newSource(c, "persistentvolumeclaims", &corev1.PersistentVolumeClaim{}, core.PersistentVolumeClaims(all), "", trimClaim, c.setClaim, c.deleteClaim)
		},
		func() (*source, error) {
			return newSource(c, "persistentvolumes", &corev1.PersistentVolume{}, core.PersistentVolumes(), "", trimVolume, c.setVolume, c.deleteVolume)
		},
		func() (*source, error) {
			return newSource(c, "storageclasses", &storagev1.StorageClass{}, c.o.Client.StorageV1().StorageClasses(), "", trimStorageClass, c.setStorageClass, c.deleteStorageClass)
		},
		func() (*source, error) {
			return newSource(c, "namespaces", &corev1.Namespace{}, core.Namespaces(), "", trimNamespace, c.setNamespace, c.deleteNamespace)
		},
		func() (*source, error) {
			return newSource(c, "poddisruptionbudgets", &policyv1.PodDisruptionBudget{}, c.o.Client.PolicyV1().PodDisruptionBudgets(all), "", trimMeta[*policyv1.PodDisruptionBudget], c.setPDB, c.deletePDB)
		},
		func() (*source, error) {
			return newSource(c, "daemonsets", &appsv1.DaemonSet{}, c.o.Client.AppsV1().DaemonSets(all), "", trimDaemonSet, c.setDaemonSet, c.deleteDaemonSet)
		},
	} {
		s, err := add()
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, nil
}

// newSource makes the informer of a resource. set is called with every object
// that is new or differs, drop with every one that is gone, one after the other.
func newSource[T metav1.Object, L runtime.Object](c *Collector, resource string, example runtime.Object, api listable[L],
	fieldSelector string, trim func(T) T, set, drop func(T)) (*source, error) {
	s := &source{c: c, resource: resource, watched: make(chan struct{})}
	lw := cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = fieldSelector
			list, err := api.List(ctx, o)
			if err != nil {
				s.failed(ctx, "list", err)
				return nil, err
			}
			return list, nil
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = fieldSelector
			w, err := api.Watch(ctx, o)
			if err != nil {
				s.failed(ctx, "watch", err)
				return nil, err
			}
			return s.observe(w, o.SendInitialEvents != nil && *o.SendInitialEvents), nil
		},
	}, c.o.Client)
	s.informer = cache.NewSharedIndexInformerWithOptions(lw, example, cache.SharedIndexInformerOptions{ObjectDescription: resource})
	if err := s.informer.SetTransform(func(o any) (any, error) {
		if t, ok := o.(T); ok {
			return trim(t), nil
		}
		return o, nil
	}); err != nil {
		return nil, err
	}
	// Failures are told by failed, once for each outage.
	if err := s.informer.SetWatchErrorHandlerWithContext(func(context.Context, *cache.Reflector, error) {}); err != nil {
		return nil, err
	}
	handler, err := s.informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(o any) {
			if t, ok := o.(T); ok {
				set(t)
			}
		},
		UpdateFunc: func(_, o any) {
			if t, ok := o.(T); ok {
				set(t)
			}
		},
		DeleteFunc: func(o any) {
			if gone, ok := o.(cache.DeletedFinalStateUnknown); ok {
				o = gone.Obj
			}
			if t, ok := o.(T); ok {
				drop(t)
			}
		},
	})
	if err != nil {
		return nil, err
	}
	s.handled = handler.HasSyncedChecker()
	return s, nil
}

// failed notes that the API server refused a list or watch. An outage is told
// once, when it begins, and so is a missing right.
func (s *source) failed(ctx context.Context, verb string, err error) {
	// These tell the informer how to go on: list again, or without streaming.
	if ctx.Err() != nil || apierrors.IsResourceExpired(err) || apierrors.IsGone(err) || apierrors.IsInvalid(err) {
		return
	}
	s.c.errors.Count(verb, s.resource, err)
	s.mu.Lock()
	forbidden := apierrors.IsForbidden(err)
	told := s.err != nil && apierrors.IsForbidden(s.err) == forbidden
	seen := !s.freshAt.IsZero()
	s.open, s.err = false, err
	s.mu.Unlock()
	if told {
		return
	}
	effect := "no snapshot is published until it can"
	if seen {
		effect = "snapshots keep the last known state and say since when it is old"
	}
	if forbidden {
		s.c.log.ErrorContext(ctx, fmt.Sprintf("the kubeconfig for reading lacks the right to list and watch %s: apply deploy/kubernetes/rbac.yaml, or grant it; %s", s.resource, effect),
			"resource", s.resource, "verb", verb, "err", err)
		return
	}
	s.c.log.WarnContext(ctx, "API server can't be watched; "+effect, "resource", s.resource, "verb", verb, "err", err)
}

// observe passes a watch on and notes whether it delivers. A watch that sends
// the present objects first delivers once it has sent them all.
func (s *source) observe(inner watch.Interface, initial bool) watch.Interface {
	s.mu.Lock()
	s.generation++
	w := &observedWatch{inner: inner, out: make(chan watch.Event), stopped: make(chan struct{}), generation: s.generation}
	s.mu.Unlock()
	if !initial {
		s.opened(w.generation)
	}
	go w.pass(s)
	return w
}

// opened notes that a watch delivers, from where the list or the watch before
// it has ended: the cache is current.
func (s *source) opened(generation int) {
	now := s.c.o.Clock.Now()
	s.mu.Lock()
	ok := s.generation == generation
	recovered := ok && s.err != nil
	if ok {
		if s.freshAt.IsZero() {
			close(s.watched)
		}
		s.open, s.err, s.freshAt = true, nil, now
	}
	s.mu.Unlock()
	if recovered {
		s.c.log.Info("API server can be watched again", "resource", s.resource)
	}
}

func (s *source) closed(generation int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.generation == generation {
		s.open = false
	}
}

// current notes that the cache was current at a time: the watch is open, and
// the server answered or the watch delivered something.
func (s *source) current(at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open && at.After(s.freshAt) {
		s.freshAt = at
	}
}

func (s *source) state() (freshAt time.Time, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.freshAt, s.err
}

type observedWatch struct {
	inner      watch.Interface
	out        chan watch.Event
	once       sync.Once
	stopped    chan struct{}
	generation int
}

func (w *observedWatch) ResultChan() <-chan watch.Event { return w.out }

func (w *observedWatch) Stop() {
	w.once.Do(func() { close(w.stopped) })
	w.inner.Stop()
}

func (w *observedWatch) pass(s *source) {
	defer close(w.out)
	defer s.closed(w.generation)
	for {
		select {
		case <-w.stopped:
			return
		case e, ok := <-w.inner.ResultChan():
			if !ok {
				return
			}
			if endOfInitialEvents(e) {
				s.opened(w.generation)
			}
			select {
			case w.out <- e:
			case <-w.stopped:
				return
			}
			if e.Type != watch.Error {
				s.current(s.c.o.Clock.Now())
			}
		}
	}
}

func endOfInitialEvents(e watch.Event) bool {
	if e.Type != watch.Bookmark {
		return false
	}
	m, err := meta.Accessor(e.Object)
	return err == nil && m.GetAnnotations()[metav1.InitialEventsAnnotationKey] == "true"
}
