package simulation

import (
	"strconv"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
)

// historyLength is how many changes a watch can go back; an older version is
// answered with 410, upon which a reflector lists again.
const historyLength = 10_000

// change is one write; old is nil for a creation, new for a removal.
type change struct {
	resource schema.GroupVersionResource
	version  int64
	old, new object
}

// publish hands a change to the watchers and to the world's controllers. The
// caller holds mu.
func (s *store) publish(c change) {
	s.history = append(s.history, c)
	if len(s.history) > 2*historyLength {
		s.history = append([]change(nil), s.history[len(s.history)-historyLength:]...)
	}
	for w := range s.watchers {
		w.offer(c)
	}
	s.signal(s.changed)
	for r := range s.readers {
		s.signal(r)
	}
}

func (s *store) signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // it has a token already
	}
}

// watcher is one client's watch. Its queue has no bound, so that a slow client
// neither blocks the world nor loses anything.
type watcher struct {
	resource  schema.GroupVersionResource
	namespace string
	labels    labels.Selector
	fields    fields.Selector

	results chan watch.Event
	wake    chan struct{}
	stop    chan struct{}
	once    sync.Once
	closed  func()

	// mu guards queue.
	mu    sync.Mutex
	queue []watch.Event
}

// watch follows a resource from a version; "" and "0" begin with what there is.
func (s *store) watch(r schema.GroupVersionResource, namespace string, l labels.Selector, f fields.Selector, from string) (watch.Interface, error) {
	w := &watcher{
		resource: r, namespace: namespace, labels: l, fields: f,
		results: make(chan watch.Event), wake: make(chan struct{}, 1), stop: make(chan struct{}),
	}
	w.closed = func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.watchers, w)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if from == "" || from == "0" {
		for _, o := range s.selected(r, namespace, l, f) {
			w.push(watch.Added, o)
		}
	} else {
		since, err := strconv.ParseInt(from, 10, 64)
		if err != nil {
			return nil, apierrors.NewBadRequest("invalid resource version " + strconv.Quote(from))
		}
		if len(s.history) > 0 && since+1 < s.history[0].version {
			return nil, apierrors.NewResourceExpired("too old resource version: " + from)
		}
		for _, c := range s.history {
			if c.version > since {
				w.offer(c)
			}
		}
	}
	s.watchers[w] = struct{}{}
	go w.pump()
	return w, nil
}

// offer queues what a change means for this watch: an object may enter or leave
// its selection.
func (w *watcher) offer(c change) {
	if c.resource != w.resource {
		return
	}
	selected := func(o object) bool {
		return o != nil && (w.namespace == "" || o.GetNamespace() == w.namespace) && matches(o, w.labels, w.fields)
	}
	switch was, is := selected(c.old), selected(c.new); {
	case is && was:
		w.push(watch.Modified, c.new)
	case is:
		w.push(watch.Added, c.new)
	case was && c.new != nil: // the last state that was selected, at the version of the change
		gone := c.old.DeepCopyObject().(object)
		gone.SetResourceVersion(c.new.GetResourceVersion())
		w.push(watch.Deleted, gone)
	case was:
		w.push(watch.Deleted, c.old)
	}
}

func (w *watcher) push(t watch.EventType, o object) {
	w.mu.Lock()
	w.queue = append(w.queue, watch.Event{Type: t, Object: o.DeepCopyObject()})
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (w *watcher) pump() {
	defer close(w.results)
	for {
		w.mu.Lock()
		batch := w.queue
		w.queue = nil
		w.mu.Unlock()
		for _, e := range batch {
			select {
			case w.results <- e:
			case <-w.stop:
				return
			}
		}
		if len(batch) > 0 {
			continue
		}
		select {
		case <-w.wake:
		case <-w.stop:
			return
		}
	}
}

// Stop implements watch.Interface.
func (w *watcher) Stop() {
	w.once.Do(func() {
		close(w.stop)
		w.closed()
	})
}

// ResultChan implements watch.Interface.
func (w *watcher) ResultChan() <-chan watch.Event { return w.results }

// matches says whether a label and a field selector select an object.
func matches(o object, l labels.Selector, f fields.Selector) bool {
	if l != nil && !l.Matches(labels.Set(o.GetLabels())) {
		return false
	}
	return f == nil || f.Empty() || f.Matches(fieldsOf(o))
}

// fieldsOf are the fields that the API server lets clients select by.
func fieldsOf(o object) fields.Set {
	set := fields.Set{"metadata.name": o.GetName(), "metadata.namespace": o.GetNamespace()}
	switch o := o.(type) {
	case *corev1.Pod:
		set["spec.nodeName"] = o.Spec.NodeName
		set["spec.schedulerName"] = o.Spec.SchedulerName
		set["spec.restartPolicy"] = string(o.Spec.RestartPolicy)
		set["spec.serviceAccountName"] = o.Spec.ServiceAccountName
		set["status.phase"] = string(o.Status.Phase)
		set["status.podIP"] = o.Status.PodIP
		set["status.nominatedNodeName"] = o.Status.NominatedNodeName
	case *corev1.Node:
		set["spec.unschedulable"] = strconv.FormatBool(o.Spec.Unschedulable)
	case *corev1.Secret:
		set["type"] = string(o.Type)
	case *corev1.Event:
		set["involvedObject.kind"] = o.InvolvedObject.Kind
		set["involvedObject.namespace"] = o.InvolvedObject.Namespace
		set["involvedObject.name"] = o.InvolvedObject.Name
		set["involvedObject.uid"] = string(o.InvolvedObject.UID)
		set["reason"], set["type"] = o.Reason, o.Type
	}
	return set
}
