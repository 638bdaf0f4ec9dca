package simulation

import (
	"encoding/json"
	"fmt"
	"reflect"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/apimachinery/pkg/watch"
	fakediscovery "k8s.io/client-go/discovery/fake"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/kubernetes/scheme"
	clienttesting "k8s.io/client-go/testing"
)

// newClient makes client-go's fake clientset speak to the store instead of to
// its own tracker, which has no resource versions, ignores field selectors and
// panics when a watcher lags 100 events behind.
func newClient(s *store, serverVersion string) *fake.Clientset {
	c := fake.NewClientset()
	c.PrependReactor("*", "*", s.react)
	c.PrependWatchReactor("*", func(a clienttesting.Action) (bool, watch.Interface, error) {
		action, ok := a.(clienttesting.WatchActionImpl)
		if !ok {
			return false, nil, nil
		}
		r := action.WatchRestrictions
		w, err := s.watch(action.GetResource(), action.GetNamespace(), r.Labels, r.Fields, r.ResourceVersion)
		return true, w, err
	})
	if d, ok := c.Discovery().(*fakediscovery.FakeDiscovery); ok {
		d.FakedServerVersion = &version.Info{GitVersion: serverVersion}
	}
	return c
}

// react answers one call. The clientset's lock is held, so it must not be
// called from here.
func (s *store) react(a clienttesting.Action) (handled bool, result runtime.Object, err error) {
	defer func() {
		if v := reflect.ValueOf(result); v.IsValid() && v.Kind() == reflect.Pointer && v.IsNil() {
			result = nil
		}
		if result != nil {
			result = result.DeepCopyObject()
		}
	}()
	r, ns := a.GetResource(), a.GetNamespace()
	switch action := a.(type) {
	case clienttesting.GetActionImpl:
		o, err := s.get(r, key{ns, action.Name})
		return true, nilable(o), err
	case clienttesting.ListActionImpl:
		o, err := s.reactList(action)
		return true, o, err
	case clienttesting.CreateActionImpl:
		o, err := s.reactCreate(action)
		return true, o, err
	case clienttesting.UpdateActionImpl:
		in, err := accessor(action.Object)
		if err != nil {
			return true, nil, err
		}
		o, err := s.update(r, in, action.GetSubresource(), len(action.UpdateOptions.DryRun) > 0)
		return true, nilable(o), err
	case clienttesting.PatchActionImpl:
		o, err := s.patch(r, key{ns, action.Name}, action.GetSubresource(), len(action.PatchOptions.DryRun) > 0, func(o object) (object, error) {
			return applyPatch(o, action.PatchType, action.Patch)
		})
		return true, nilable(o), err
	case clienttesting.DeleteActionImpl:
		return true, nil, s.delete(r, key{ns, action.Name}, action.DeleteOptions)
	case clienttesting.DeleteCollectionActionImpl:
		found, _ := s.list(r, ns, action.ListRestrictions.Labels, action.ListRestrictions.Fields)
		for _, o := range found {
			if err := s.delete(r, keyOf(o), action.DeleteOptions); err != nil && !apierrors.IsNotFound(err) {
				return true, nil, err
			}
		}
		return true, nil, nil
	default: // discovery
		return false, nil, nil
	}
}

func nilable(o object) runtime.Object {
	if o == nil {
		return nil
	}
	return o
}

func (s *store) reactList(a clienttesting.ListActionImpl) (runtime.Object, error) {
	kind := a.GetKind()
	kind.Kind += "List"
	list, err := scheme.Scheme.New(kind)
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", a.GetResource().Resource, err)
	}
	found, at := s.list(a.GetResource(), a.GetNamespace(), a.ListRestrictions.Labels, a.ListRestrictions.Fields)
	items := make([]runtime.Object, len(found))
	for i, o := range found {
		items[i] = o
	}
	if err := meta.SetList(list, items); err != nil {
		return nil, fmt.Errorf("list %s: %w", a.GetResource().Resource, err)
	}
	m, err := meta.ListAccessor(list)
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", a.GetResource().Resource, err)
	}
	m.SetResourceVersion(fmt.Sprint(at))
	return list, nil
}

func (s *store) reactCreate(a clienttesting.CreateActionImpl) (runtime.Object, error) {
	if a.GetSubresource() == "eviction" {
		eviction, ok := a.Object.(*policyv1.Eviction)
		if !ok {
			return nil, apierrors.NewBadRequest("only policy/v1 evictions are served")
		}
		return nil, s.evict(a.GetNamespace(), eviction)
	}
	if a.GetSubresource() != "" {
		return nil, apierrors.NewMethodNotSupported(a.GetResource().GroupResource(), "create "+a.GetSubresource())
	}
	in, err := accessor(a.Object)
	if err != nil {
		return nil, err
	}
	if in.GetNamespace() == "" {
		in = in.DeepCopyObject().(object)
		in.SetNamespace(a.GetNamespace())
	}
	o, err := s.create(a.GetResource(), in, len(a.CreateOptions.DryRun) > 0)
	return nilable(o), err
}

func applyPatch(o object, t types.PatchType, patch []byte) (object, error) {
	old, err := json.Marshal(o)
	if err != nil {
		return nil, fmt.Errorf("patch %s: %w", o.GetName(), err)
	}
	var patched []byte
	switch t {
	case types.JSONPatchType:
		var p jsonpatch.Patch
		if p, err = jsonpatch.DecodePatch(patch); err == nil {
			patched, err = p.Apply(old)
		}
	case types.MergePatchType:
		patched, err = jsonpatch.MergePatch(old, patch)
	case types.StrategicMergePatchType:
		patched, err = strategicpatch.StrategicMergePatch(old, patch, o)
	default:
		err = fmt.Errorf("patch type %s is not served", t)
	}
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	out, ok := reflect.New(reflect.TypeOf(o).Elem()).Interface().(object)
	if !ok {
		return nil, fmt.Errorf("patch %s: %T is no object of the API", o.GetName(), o)
	}
	if err := json.Unmarshal(patched, out); err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	return out, nil
}
