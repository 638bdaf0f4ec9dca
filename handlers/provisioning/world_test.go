package provisioning

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"
)

// fakeWorld is the machines and Node objects of one cluster, in memory. Like a
// real one it does nothing for a caller whose context has ended.
type fakeWorld struct {
	mu       sync.Mutex
	machines map[string]*Machine
	objects  map[string]NodeObject
	secrets  map[string]bool
	runs     map[string]int // how often a machine of this claim was started
	calls    []string       // in order, "method name"
	errs     map[string][]error
	log      string
	uids     int
	onStart  func(name string)
	onClaim  func(o NodeObject)
}

func newWorld() *fakeWorld {
	return &fakeWorld{machines: map[string]*Machine{}, objects: map[string]NodeObject{}, secrets: map[string]bool{},
		runs: map[string]int{}, errs: map[string][]error{}}
}

// failNext lets the next calls of a method return these errors.
func (w *fakeWorld) failNext(method string, errs ...error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.errs[method] = append(w.errs[method], errs...)
}

// call begins a method; the lock is held when it returns nil.
func (w *fakeWorld) call(ctx context.Context, method, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	w.mu.Lock()
	w.calls = append(w.calls, method+" "+name)
	if errs := w.errs[method]; len(errs) > 0 {
		w.errs[method] = errs[1:]
		if errs[0] != nil {
			w.mu.Unlock()
			return errs[0]
		}
	}
	return nil
}

func (w *fakeWorld) made(method string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for _, c := range w.calls {
		if len(c) > len(method) && c[:len(method)+1] == method+" " {
			n++
		}
	}
	return n
}

// do changes the world as somebody else would.
func (w *fakeWorld) do(f func(w *fakeWorld)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f(w)
}

// register makes the Node object and its secret, as an agent does.
func (w *fakeWorld) register(name string, ready bool) NodeObject {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.uids++
	o := NodeObject{Name: name, UID: fmt.Sprintf("uid-%d", w.uids), Ready: ready}
	if m := w.machines[name]; m != nil {
		o.Pool, o.ClaimID = m.Pool, m.ClaimID
	}
	w.objects[name], w.secrets[name] = o, true
	return o
}

func (w *fakeWorld) left(t *testing.T) (machines, objects, secrets []string) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Sorted(maps.Keys(w.machines)), slices.Sorted(maps.Keys(w.objects)), slices.Sorted(maps.Keys(w.secrets))
}

// fakeMachines is the part of the world that is a pool's provider.
type fakeMachines struct{ *fakeWorld }

func (w fakeMachines) Create(ctx context.Context, s Spec) (Machine, error) {
	if err := w.call(ctx, "create", s.Name); err != nil {
		return Machine{}, err
	}
	defer w.mu.Unlock()
	if m := w.machines[s.Name]; m != nil {
		if m.ClaimID != s.ClaimID || m.Epoch != s.Epoch {
			return Machine{}, fmt.Errorf("create %s: %w", s.Name, ErrNameTaken)
		}
		return *m, nil
	}
	m := &Machine{Name: s.Name, ID: "id-" + s.Name, Host: "host-1", Image: "rancher/k3s:v1.34.4-k3s1", Cluster: s.Cluster, Pool: s.Pool,
		ClaimID: s.ClaimID, Epoch: s.Epoch, State: MachineCreated}
	w.machines[s.Name] = m
	return *m, nil
}

func (w fakeMachines) Start(ctx context.Context, name string) error {
	if err := w.call(ctx, "start", name); err != nil {
		return err
	}
	m := w.machines[name]
	if m == nil {
		w.mu.Unlock()
		return ErrNotFound
	}
	started := m.State == MachineCreated
	if started {
		m.State = MachineRunning
		w.runs[m.ClaimID]++
	}
	hook := w.onStart
	w.mu.Unlock()
	if started && hook != nil {
		hook(name)
	}
	return nil
}

func (w fakeMachines) Stop(ctx context.Context, name string) error {
	if err := w.call(ctx, "stop", name); err != nil {
		return err
	}
	defer w.mu.Unlock()
	m := w.machines[name]
	if m == nil {
		return ErrNotFound
	}
	if m.State == MachineRunning {
		m.State = MachineExited
	}
	return nil
}

func (w fakeMachines) Delete(ctx context.Context, name string) error {
	if err := w.call(ctx, "delete", name); err != nil {
		return err
	}
	defer w.mu.Unlock()
	m := w.machines[name]
	if m == nil {
		return ErrNotFound
	}
	maps.DeleteFunc(w.machines, func(_ string, o *Machine) bool { return o == m })
	return nil
}

func (w fakeMachines) Get(ctx context.Context, name string) (Machine, error) {
	if err := w.call(ctx, "get", name); err != nil {
		return Machine{}, err
	}
	defer w.mu.Unlock()
	if m := w.machines[name]; m != nil {
		return *m, nil
	}
	return Machine{}, ErrNotFound
}

func (w fakeMachines) List(ctx context.Context) ([]Machine, error) {
	if err := w.call(ctx, "list", "machines"); err != nil {
		return nil, err
	}
	defer w.mu.Unlock()
	var out []Machine
	for _, m := range w.machines {
		out = append(out, *m)
	}
	return out, nil
}

func (w fakeMachines) Logs(ctx context.Context, name string, _ int) (string, error) {
	if err := w.call(ctx, "logs", name); err != nil {
		return "", err
	}
	defer w.mu.Unlock()
	if w.machines[name] == nil {
		return "", ErrNotFound
	}
	return w.log, nil
}

// Named implements Namer: both names mean the machine from then on.
func (w fakeMachines) Named(ctx context.Context, name, node string) error {
	if err := w.call(ctx, "named", name); err != nil {
		return err
	}
	defer w.mu.Unlock()
	m := w.machines[name]
	switch other := w.machines[node]; {
	case m == nil:
		return ErrNotFound
	case other != nil && other != m:
		return ErrNameTaken
	}
	m.Name = node
	w.machines[node] = m
	return nil
}

// fakeNodes is the part of the world that is the API server.
type fakeNodes struct{ *fakeWorld }

func (w fakeNodes) GetNode(ctx context.Context, name string) (NodeObject, error) {
	if err := w.call(ctx, "getnode", name); err != nil {
		return NodeObject{}, err
	}
	defer w.mu.Unlock()
	if o, ok := w.objects[name]; ok {
		return o, nil
	}
	return NodeObject{}, ErrNotFound
}

func (w fakeNodes) ListNodes(ctx context.Context) ([]NodeObject, error) {
	if err := w.call(ctx, "listnodes", "all"); err != nil {
		return nil, err
	}
	defer w.mu.Unlock()
	return slices.Collect(maps.Values(w.objects)), nil
}

func (w fakeNodes) ListByProviderID(ctx context.Context) (map[string]NodeObject, error) {
	if err := w.call(ctx, "listbyid", "all"); err != nil {
		return nil, err
	}
	defer w.mu.Unlock()
	out := map[string]NodeObject{}
	for _, o := range w.objects {
		if o.ProviderID != "" {
			out[o.ProviderID] = o
		}
	}
	return out, nil
}

func (w fakeNodes) ClaimNode(ctx context.Context, c NodeClaim) error {
	if err := w.call(ctx, "claimnode", c.Name); err != nil {
		return err
	}
	o, ok := w.objects[c.Name]
	switch {
	case !ok || o.ProviderID != c.ProviderID:
		w.mu.Unlock()
		return ErrNotFound
	case o.ClaimID != "" && o.ClaimID != c.ClaimID:
		w.mu.Unlock()
		return ErrNameTaken
	}
	o.ClaimID, o.Pool = c.ClaimID, c.Pool
	w.objects[c.Name] = o
	hook := w.onClaim
	w.mu.Unlock()
	if hook != nil {
		hook(o)
	}
	return nil
}

func (w fakeNodes) DeleteNode(ctx context.Context, name, uid string) error {
	if err := w.call(ctx, "deletenode", name); err != nil {
		return err
	}
	defer w.mu.Unlock()
	o, ok := w.objects[name]
	switch {
	case !ok:
		return ErrNotFound
	case o.UID != uid:
		return fmt.Errorf("node %s has UID %s, not %s", name, o.UID, uid)
	}
	delete(w.objects, name)
	return nil
}

func (w fakeNodes) DeleteNodePassword(ctx context.Context, name string) error {
	if err := w.call(ctx, "deletesecret", name); err != nil {
		return err
	}
	defer w.mu.Unlock()
	if !w.secrets[name] {
		return ErrNotFound
	}
	delete(w.secrets, name)
	return nil
}

// shortTimes let tests wait for milliseconds.
func shortTimes() Times {
	return Times{RetryBase: 20 * time.Millisecond, RetryMax: 100 * time.Millisecond, Call: 5 * time.Second, Create: 5 * time.Second,
		Watch: 50 * time.Millisecond, Sweep: time.Hour, Grace: 2 * time.Minute, Lease: 10 * time.Second}
}
