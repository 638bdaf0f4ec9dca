package simulation

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
)

// object is what the store holds.
type object interface {
	runtime.Object
	metav1.Object
}

type key struct{ namespace, name string }

func keyOf(o metav1.Object) key { return key{o.GetNamespace(), o.GetName()} }

// store is the API server's memory: resource versions, uids, preconditions,
// graceful deletion and watches, which client-go's own fake lacks. Stored
// objects are never changed in place, so that readers may share them.
type store struct {
	clock clock.PassiveClock

	// mu guards everything below.
	mu       sync.Mutex
	random   *rand.Rand
	version  int64
	objects  map[schema.GroupVersionResource]map[key]object
	history  []change // the latest changes, oldest first
	watchers map[*watcher]struct{}
	changed  chan struct{} // holds one token when something has changed
	readers  map[chan struct{}]struct{}
}

func newStore(c clock.PassiveClock, seed uint64) *store {
	return &store{
		clock:    c,
		random:   rand.New(rand.NewPCG(seed, 0)), //nolint:gosec // names and uids of a simulation
		objects:  map[schema.GroupVersionResource]map[key]object{},
		watchers: map[*watcher]struct{}{},
		changed:  make(chan struct{}, 1),
		readers:  map[chan struct{}]struct{}{},
	}
}

func (s *store) currentVersion() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.version
}

// subscribe puts a token into c at each change, until it is called off.
func (s *store) subscribe(c chan struct{}) (off func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.readers[c] = struct{}{}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.readers, c)
	}
}

func (s *store) get(r schema.GroupVersionResource, k key) (object, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lookup(r, k)
}

func (s *store) lookup(r schema.GroupVersionResource, k key) (object, error) {
	if o, ok := s.objects[r][k]; ok {
		return o, nil
	}
	return nil, apierrors.NewNotFound(r.GroupResource(), k.name)
}

// list returns what matches, ordered by namespace and name, and the version that
// a watch may continue at.
func (s *store) list(r schema.GroupVersionResource, namespace string, l labels.Selector, f fields.Selector) ([]object, int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.selected(r, namespace, l, f), s.version
}

// selected is list for callers that hold mu.
func (s *store) selected(r schema.GroupVersionResource, namespace string, l labels.Selector, f fields.Selector) []object {
	var found []object
	for k, o := range s.objects[r] {
		if (namespace == "" || k.namespace == namespace) && matches(o, l, f) {
			found = append(found, o)
		}
	}
	slices.SortFunc(found, func(a, b object) int {
		return cmp.Or(cmp.Compare(a.GetNamespace(), b.GetNamespace()), cmp.Compare(a.GetName(), b.GetName()))
	})
	return found
}

func (s *store) create(r schema.GroupVersionResource, o object, dryRun bool) (object, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o = o.DeepCopyObject().(object)
	if o.GetName() == "" {
		if o.GetGenerateName() == "" {
			return nil, apierrors.NewBadRequest("name or generateName is required")
		}
		o.SetName(o.GetGenerateName() + s.suffix())
	}
	if _, exists := s.objects[r][keyOf(o)]; exists {
		return nil, apierrors.NewAlreadyExists(r.GroupResource(), o.GetName())
	}
	if o.GetResourceVersion() != "" {
		return nil, apierrors.NewBadRequest("resourceVersion should not be set on objects to be created")
	}
	o.SetUID(s.uid())
	o.SetCreationTimestamp(metav1.NewTime(s.clock.Now().Truncate(time.Second)))
	o.SetGeneration(1)
	o.SetDeletionTimestamp(nil)
	if pod, ok := o.(*corev1.Pod); ok {
		defaultPod(pod)
	}
	if !dryRun {
		s.put(r, nil, o)
	}
	return o, nil
}

const alphabet = "bcdfghjklmnpqrstvwxz2456789" // what Kubernetes takes for generated names

func (s *store) suffix() string {
	b := make([]byte, 5)
	for i := range b {
		b[i] = alphabet[s.random.IntN(len(alphabet))]
	}
	return string(b)
}

func (s *store) uid() types.UID {
	a, b := s.random.Uint64(), s.random.Uint64()
	return types.UID(fmt.Sprintf("%08x-%04x-4%03x-8%03x-%012x", a>>32, a>>16&0xffff, a&0xfff, b>>48&0xfff, b&0xffffffffffff))
}

// update replaces an object as a client has sent it. subresource is "" or
// "status": either leaves the other's part alone, as the API server does.
func (s *store) update(r schema.GroupVersionResource, o object, subresource string, dryRun bool) (object, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old, err := s.lookup(r, keyOf(o))
	if err != nil {
		return nil, err
	}
	return s.replace(r, old, o.DeepCopyObject().(object), subresource, dryRun)
}

// patch changes an object by what fn makes of a copy.
func (s *store) patch(r schema.GroupVersionResource, k key, subresource string, dryRun bool, fn func(object) (object, error)) (object, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old, err := s.lookup(r, k)
	if err != nil {
		return nil, err
	}
	o, err := fn(old.DeepCopyObject().(object))
	if err != nil {
		return nil, err
	}
	return s.replace(r, old, o, subresource, dryRun)
}

// modify is patch for the world's own controllers, which see the whole object.
func (s *store) modify(r schema.GroupVersionResource, k key, fn func(object)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	old, err := s.lookup(r, k)
	if err != nil {
		return err
	}
	o := old.DeepCopyObject().(object)
	fn(o)
	s.putIfChanged(r, old, o)
	return nil
}

func (s *store) replace(r schema.GroupVersionResource, old, o object, subresource string, dryRun bool) (object, error) {
	if uid := o.GetUID(); uid != "" && uid != old.GetUID() {
		return nil, apierrors.NewConflict(r.GroupResource(), o.GetName(), fmt.Errorf("Precondition failed: UID in precondition: %v, UID in object meta: %v", uid, old.GetUID())) //nolint:staticcheck // the API server's words
	}
	if v := o.GetResourceVersion(); v != "" && v != old.GetResourceVersion() {
		return nil, apierrors.NewConflict(r.GroupResource(), o.GetName(), fmt.Errorf("the object has been modified; please apply your changes to the latest version and try again"))
	}
	keepPart(old, o, subresource)
	o.SetUID(old.GetUID())
	o.SetResourceVersion(old.GetResourceVersion())
	o.SetCreationTimestamp(old.GetCreationTimestamp())
	o.SetDeletionTimestamp(old.GetDeletionTimestamp())
	o.SetGeneration(old.GetGeneration())
	if dryRun {
		return o, nil
	}
	return s.putIfChanged(r, old, o), nil
}

// keepPart takes from old what an update of this subresource may not change.
func keepPart(old, o object, subresource string) {
	part := func(v object, name string) reflect.Value { return reflect.ValueOf(v).Elem().FieldByName(name) }
	keep := "Status"
	if subresource == "status" {
		keep = "Spec"
	}
	if f := part(o, keep); f.IsValid() {
		f.Set(part(old.DeepCopyObject().(object), keep))
	}
}

func (s *store) putIfChanged(r schema.GroupVersionResource, old, o object) object {
	if equality.Semantic.DeepEqual(old, o) {
		return old
	}
	if spec := reflect.ValueOf(o).Elem().FieldByName("Spec"); spec.IsValid() &&
		!equality.Semantic.DeepEqual(spec.Interface(), reflect.ValueOf(old).Elem().FieldByName("Spec").Interface()) {
		o.SetGeneration(old.GetGeneration() + 1)
	}
	if o.GetDeletionTimestamp() != nil && len(o.GetFinalizers()) == 0 && len(old.GetFinalizers()) > 0 {
		s.remove(r, o)
		return o
	}
	s.put(r, old, o)
	return o
}

func (s *store) put(r schema.GroupVersionResource, old, o object) {
	s.version++
	o.SetResourceVersion(strconv.FormatInt(s.version, 10))
	if s.objects[r] == nil {
		s.objects[r] = map[key]object{}
	}
	s.objects[r][keyOf(o)] = o
	s.publish(change{resource: r, version: s.version, old: old, new: o})
}

func (s *store) remove(r schema.GroupVersionResource, o object) {
	s.version++
	old := s.objects[r][keyOf(o)]
	delete(s.objects[r], keyOf(o))
	last := old.DeepCopyObject().(object)
	last.SetResourceVersion(strconv.FormatInt(s.version, 10))
	s.publish(change{resource: r, version: s.version, old: last})
}

// delete removes an object, or marks it as the API server does: one with
// finalizers, and a pod that runs somewhere and has a grace period.
func (s *store) delete(r schema.GroupVersionResource, k key, o metav1.DeleteOptions) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.deleteLocked(r, k, o)
}

func (s *store) deleteLocked(r schema.GroupVersionResource, k key, o metav1.DeleteOptions) error {
	old, err := s.lookup(r, k)
	if err != nil {
		return err
	}
	if p := o.Preconditions; p != nil {
		if p.UID != nil && *p.UID != old.GetUID() {
			return apierrors.NewConflict(r.GroupResource(), k.name, fmt.Errorf("Precondition failed: UID in precondition: %v, UID in object meta: %v", *p.UID, old.GetUID())) //nolint:staticcheck // the API server's words
		}
		if p.ResourceVersion != nil && *p.ResourceVersion != old.GetResourceVersion() {
			return apierrors.NewConflict(r.GroupResource(), k.name, fmt.Errorf("Precondition failed: ResourceVersion in precondition: %v, ResourceVersion in object meta: %v", *p.ResourceVersion, old.GetResourceVersion())) //nolint:staticcheck // the API server's words
		}
	}
	if len(o.DryRun) > 0 {
		return nil
	}
	var grace int64
	if pod, ok := old.(*corev1.Pod); ok {
		grace = gracePeriod(pod, o.GracePeriodSeconds)
	}
	if grace == 0 && len(old.GetFinalizers()) == 0 {
		s.remove(r, old)
		return nil
	}
	if already := old.GetDeletionGracePeriodSeconds(); already != nil && *already <= grace {
		return nil
	}
	marked := old.DeepCopyObject().(object)
	at := metav1.NewTime(s.clock.Now().Add(time.Duration(grace) * time.Second).Truncate(time.Second))
	marked.SetDeletionTimestamp(&at)
	marked.SetDeletionGracePeriodSeconds(&grace)
	s.put(r, old, marked)
	return nil
}

// gracePeriod is 0 for a pod that no kubelet has to end.
func gracePeriod(pod *corev1.Pod, asked *int64) int64 {
	switch {
	case pod.Spec.NodeName == "", pod.Status.Phase == corev1.PodSucceeded, pod.Status.Phase == corev1.PodFailed:
		return 0
	case asked != nil:
		return max(*asked, 0)
	case pod.Spec.TerminationGracePeriodSeconds != nil:
		return *pod.Spec.TerminationGracePeriodSeconds
	default:
		return corev1.DefaultTerminationGracePeriodSeconds
	}
}

// accessor is for objects that come from clients as runtime.Object.
func accessor(o runtime.Object) (object, error) {
	if v, ok := o.(object); ok {
		return v, nil
	}
	_, err := meta.Accessor(o)
	return nil, fmt.Errorf("%T is no object of the API: %w", o, err)
}
