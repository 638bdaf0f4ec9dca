package providertest

import (
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/provider"
)

func (s *suite) created(t *testing.T) {
	p, spec := s.ours(t), s.spec("a")
	before := time.Now().Add(-time.Minute) // clocks of engines may differ a little
	m, err := p.Create(t.Context(), spec)
	require.NoError(t, err)
	require.NotEmpty(t, m.ID)
	require.NotEmpty(t, m.Host)
	require.NotEmpty(t, m.Image)
	require.WithinRange(t, m.CreatedAt, before, time.Now().Add(time.Minute))
	require.Equal(t, provider.Machine{
		Name: spec.Name, ID: m.ID, Host: m.Host, Image: m.Image, Cluster: spec.Cluster, Pool: spec.Pool,
		ClaimID: spec.ClaimID, Epoch: spec.Epoch, State: provider.Created, CreatedAt: m.CreatedAt,
	}, m)

	again := s.ours(t) // as after a restart of the process
	got, err := again.Get(t.Context(), spec.Name)
	require.NoError(t, err)
	require.Equal(t, m, got)
	all, err := again.List(t.Context())
	require.NoError(t, err)
	require.Len(t, all, 1)
	require.Equal(t, m.ID, all[0].ID)
	require.Equal(t, provider.Created, all[0].State)
	log, err := p.Logs(t.Context(), spec.Name, 1000)
	require.NoError(t, err)
	require.Empty(t, log)
	require.NoError(t, p.Stop(t.Context(), spec.Name), "stopping what does not run is done")
	require.NoError(t, p.Start(t.Context(), spec.Name), "and is no run")
}

func (s *suite) createdTwice(t *testing.T) {
	p, spec := s.ours(t), s.spec("a")
	first, err := p.Create(t.Context(), spec)
	require.NoError(t, err)
	second, err := s.ours(t).Create(t.Context(), spec)
	require.NoError(t, err)
	require.Equal(t, first, second)

	require.NoError(t, p.Start(t.Context(), spec.Name))
	require.NoError(t, s.ours(t).Start(t.Context(), spec.Name), "a running machine is left as it is")
	third, err := p.Create(t.Context(), spec)
	require.NoError(t, err)
	require.Equal(t, first.ID, third.ID)
	require.Equal(t, provider.Running, third.State)
}

func (s *suite) createdInParallel(t *testing.T) {
	spec := s.spec("a")
	const callers = 6
	var wg sync.WaitGroup
	ids, errs := make([]string, callers), make([]error, callers)
	for i := range callers {
		p := s.ours(t)
		wg.Go(func() {
			m, err := p.Create(t.Context(), spec)
			ids[i], errs[i] = m.ID, err
		})
	}
	wg.Wait()
	for i := range callers {
		require.NoError(t, errs[i])
		require.Equal(t, ids[0], ids[i])
	}
	all, err := s.ours(t).List(t.Context())
	require.NoError(t, err)
	require.Len(t, all, 1)
}

func (s *suite) nameTaken(t *testing.T) {
	p, spec := s.ours(t), s.spec("a")
	m, err := p.Create(t.Context(), spec)
	require.NoError(t, err)
	for name, change := range map[string]func(*provider.Spec){
		"claim": func(s *provider.Spec) { s.ClaimID = "claim-other" },
		"epoch": func(s *provider.Spec) { s.Epoch = "epoch-2" },
	} {
		other := spec
		change(&other)
		_, err := p.Create(t.Context(), other)
		require.ErrorIs(t, err, provider.ErrNameTaken, name)
	}
	got, err := p.Get(t.Context(), spec.Name)
	require.NoError(t, err)
	require.Equal(t, m, got, "the machine is as it was")
}

func (s *suite) otherCluster(t *testing.T) {
	p, other, spec := s.ours(t), s.Provider(t, s.Clusters[1]), s.spec("a")
	m, err := p.Create(t.Context(), spec)
	require.NoError(t, err)
	all, err := other.List(t.Context())
	require.NoError(t, err)
	require.Empty(t, all)
	s.requireUnseen(t, other, spec.Name)
	theirs := spec
	theirs.Cluster = s.Clusters[1]
	if !s.lacks(t, SharesNames) {
		_, err = other.Create(t.Context(), theirs)
		require.ErrorIs(t, err, provider.ErrNameTaken)
	}
	_, err = other.Create(t.Context(), spec)
	require.ErrorIs(t, err, provider.ErrRefused, "a provider makes machines of its own cluster only")
	got, err := p.Get(t.Context(), spec.Name)
	require.NoError(t, err)
	require.Equal(t, m, got)
}

// requireUnseen: whatever is done to a machine that is not ours finds none.
func (s *suite) requireUnseen(t *testing.T, p provider.NodeProvider, name string) {
	t.Helper()
	_, err := p.Get(t.Context(), name)
	require.ErrorIs(t, err, provider.ErrNotFound)
	require.ErrorIs(t, p.Start(t.Context(), name), provider.ErrNotFound)
	require.ErrorIs(t, p.Stop(t.Context(), name), provider.ErrNotFound)
	require.ErrorIs(t, p.Delete(t.Context(), name), provider.ErrNotFound)
	_, err = p.Logs(t.Context(), name, 100)
	require.ErrorIs(t, err, provider.ErrNotFound)
}

func (s *suite) foreign(t *testing.T) {
	p, spec := s.ours(t), s.spec("a")
	untouched := s.Foreign(t, spec.Name)
	require.True(t, untouched())
	_, err := p.Create(t.Context(), spec)
	require.ErrorIs(t, err, provider.ErrNameTaken)
	s.requireUnseen(t, p, spec.Name)
	all, err := p.List(t.Context())
	require.NoError(t, err)
	require.Empty(t, all)
	require.True(t, untouched())
}

func (s *suite) interrupted(t *testing.T) {
	p, spec := s.ours(t), s.spec("a")
	m, err := p.Create(t.Context(), spec)
	require.NoError(t, err)
	s.Interrupt(t, s.Clusters[0], spec)
	err = p.Start(t.Context(), spec.Name)
	require.Error(t, err, "half a machine is not started")
	require.NotErrorIs(t, err, provider.ErrExited)
	again, err := p.Create(t.Context(), spec)
	require.NoError(t, err)
	require.Equal(t, provider.Created, again.State)
	require.Equal(t, m.ClaimID, again.ClaimID)
	require.NoError(t, p.Start(t.Context(), spec.Name))
	s.Allocatable(t.Context(), t, spec.Name) // it joins, so it is whole
}

func (s *suite) allocatable(t *testing.T) {
	p, spec := s.ours(t), s.spec("a")
	sizes := !s.lacks(t, SizesMachines)
	if sizes {
		spec.MaxPods = 17
		spec.Taints = []provider.Taint{{Key: "providertest", Value: "yes", Effect: "NoSchedule"}}
	}
	_, err := p.Create(t.Context(), spec)
	require.NoError(t, err)
	require.NoError(t, p.Start(t.Context(), spec.Name))
	cpu, memory, pods := s.Allocatable(t.Context(), t, spec.Name)
	if sizes {
		require.Equal(t, spec.CPUMilli, cpu, "thousandths of a core")
		require.Equal(t, spec.MemoryBytes, memory, "bytes")
		require.Equal(t, spec.MaxPods, pods)
	}
	require.GreaterOrEqual(t, cpu, spec.CPUMilli, "thousandths of a core")
	require.GreaterOrEqual(t, memory, spec.MemoryBytes, "bytes")
	m, err := p.Get(t.Context(), spec.Name)
	require.NoError(t, err)
	require.Equal(t, provider.Running, m.State)
}

func (s *suite) exitedOnce(t *testing.T) {
	p, spec := s.Exits(t, s.Clusters[0]), s.spec("a")
	_, err := p.Create(t.Context(), spec)
	require.NoError(t, err)
	require.NoError(t, p.Start(t.Context(), spec.Name))
	m := s.waitExited(t, p, spec.Name)
	require.Equal(t, 1, m.ExitCode)
	require.ErrorIs(t, p.Start(t.Context(), spec.Name), provider.ErrExited)
	m, err = p.Create(t.Context(), spec)
	require.NoError(t, err)
	require.Equal(t, provider.Exited, m.State, "Create says how it is and changes nothing")
	require.NoError(t, p.Stop(t.Context(), spec.Name))
	log, err := p.Logs(t.Context(), spec.Name, 10_000)
	require.NoError(t, err)
	require.Equal(t, 1, strings.Count(log, s.Complaint), "one run:\n%s", log)
	all, err := p.List(t.Context())
	require.NoError(t, err)
	require.Equal(t, []provider.Machine{m}, all, "the list has the exit code too")
}

func (s *suite) waitExited(t *testing.T, p provider.NodeProvider, name string) provider.Machine {
	t.Helper()
	var m provider.Machine
	require.Eventually(t, func() bool {
		var err error
		m, err = p.Get(t.Context(), name)
		return err == nil && m.State == provider.Exited
	}, patience, 20*time.Millisecond)
	return m
}

func (s *suite) stoppedOnce(t *testing.T) {
	p, spec := s.ours(t), s.spec("a")
	_, err := p.Create(t.Context(), spec)
	require.NoError(t, err)
	require.NoError(t, p.Start(t.Context(), spec.Name))
	require.NoError(t, p.Stop(t.Context(), spec.Name))
	require.NoError(t, p.Stop(t.Context(), spec.Name), "stopped is stopped")
	require.Equal(t, provider.Exited, s.waitExited(t, p, spec.Name).State)
	require.ErrorIs(t, p.Start(t.Context(), spec.Name), provider.ErrExited)
}

func (s *suite) deleted(t *testing.T) {
	p, spec := s.ours(t), s.spec("a")
	_, err := p.Create(t.Context(), spec)
	require.NoError(t, err)
	require.NoError(t, p.Start(t.Context(), spec.Name))
	if s.Volumes != nil {
		require.Positive(t, s.Volumes(t, spec.Name), "the test would show nothing without volumes")
	}
	errs := make([]error, 3)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() { errs[i] = p.Delete(t.Context(), spec.Name) })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil { // another was first
			require.ErrorIs(t, err, provider.ErrNotFound)
		}
	}
	require.True(t, slices.Contains(errs, nil), "one of them has deleted it")
	s.requireUnseen(t, p, spec.Name)
	if s.Volumes != nil {
		require.Zero(t, s.Volumes(t, spec.Name))
	}
	next, err := p.Create(t.Context(), spec)
	require.NoError(t, err, "the name is free")
	require.Equal(t, provider.Created, next.State)
}

func (s *suite) absent(t *testing.T) {
	s.requireUnseen(t, s.ours(t), s.prefix+"-absent")
	all, err := s.ours(t).List(t.Context())
	require.NoError(t, err)
	require.Empty(t, all)
}

func (s *suite) logs(t *testing.T) {
	p, spec := s.ours(t), s.spec("a")
	_, err := p.Create(t.Context(), spec)
	require.NoError(t, err)
	require.NoError(t, p.Start(t.Context(), spec.Name))
	var log string
	keeps := !s.lacks(t, KeepsLogs)
	require.Eventually(t, func() bool {
		log, err = p.Logs(t.Context(), spec.Name, 100_000)
		return err == nil && (!keeps || len(log) > 20)
	}, patience, 20*time.Millisecond)
	short, err := p.Logs(t.Context(), spec.Name, 15)
	require.NoError(t, err)
	if keeps {
		require.NotEmpty(t, short)
	}
	require.LessOrEqual(t, len(short), 15)
	none, err := p.Logs(t.Context(), spec.Name, 0)
	require.NoError(t, err)
	require.Empty(t, none)
	seen := log
	if s.Inspect != nil {
		inspected := s.Inspect(t, spec.Name)
		require.NotEmpty(t, inspected)
		seen += inspected
	}
	for _, secret := range s.Secrets {
		require.NotEmpty(t, secret)
		require.NotContains(t, seen, secret)
	}
}

func (s *suite) leaks(t *testing.T) {
	p, raw := s.Leaks(t, s.Clusters[0])
	spec := s.spec("a")
	_, err := p.Create(t.Context(), spec)
	require.NoError(t, err)
	require.NoError(t, p.Start(t.Context(), spec.Name))
	leaked := func(text string) bool {
		return slices.ContainsFunc(s.Secrets, func(secret string) bool { return strings.Contains(text, secret) })
	}
	require.Eventually(t, func() bool { return leaked(raw(spec.Name)) }, patience, 20*time.Millisecond)
	whole, err := p.Logs(t.Context(), spec.Name, 100_000)
	require.NoError(t, err)
	require.NotEmpty(t, whole)
	require.False(t, leaked(whole))
	for n := 1; n < len(whole); n += 1 + len(whole)/24 { // wherever it is cut
		part, err := p.Logs(t.Context(), spec.Name, n)
		require.NoError(t, err)
		require.LessOrEqual(t, len(part), n)
		require.True(t, strings.HasSuffix(whole, part), "%d bytes: %q", n, part)
	}
}

func (s *suite) refused(t *testing.T) {
	p := s.ours(t)
	for name, change := range map[string]func(*provider.Spec){
		"no name":     func(s *provider.Spec) { s.Name = "" },
		"long name":   func(s *provider.Spec) { s.Name = strings.Repeat("a", provider.MaxNameLength+1) },
		"odd name":    func(s *provider.Spec) { s.Name = "../x" },
		"no claim":    func(s *provider.Spec) { s.ClaimID = "" },
		"no epoch":    func(s *provider.Spec) { s.Epoch = "" },
		"no pool":     func(s *provider.Spec) { s.Pool = "" },
		"no CPU":      func(s *provider.Spec) { s.CPUMilli = 0 },
		"no memory":   func(s *provider.Spec) { s.MemoryBytes = -1 },
		"odd taint":   func(s *provider.Spec) { s.Taints = []provider.Taint{{Key: "a", Effect: "Never"}} },
		"minus pods":  func(s *provider.Spec) { s.MaxPods = -1 },
		"label no":    func(s *provider.Spec) { s.Labels = map[string]string{"": "x"} },
		"no cluster":  func(s *provider.Spec) { s.Cluster = "" },
		"not its own": func(s *provider.Spec) { s.Cluster += "-x" },
	} {
		spec := s.spec("a")
		change(&spec)
		_, err := p.Create(t.Context(), spec)
		require.ErrorIs(t, err, provider.ErrRefused, name)
	}
	all, err := p.List(t.Context())
	require.NoError(t, err)
	require.Empty(t, all)
}

func (s *suite) list(t *testing.T) {
	p := s.ours(t)
	for _, name := range []string{"c", "a", "b"} {
		_, err := p.Create(t.Context(), s.spec(name))
		require.NoError(t, err)
	}
	require.NoError(t, p.Start(t.Context(), s.spec("b").Name))
	require.NoError(t, p.Start(t.Context(), s.spec("c").Name))
	require.NoError(t, p.Stop(t.Context(), s.spec("c").Name))
	s.waitExited(t, p, s.spec("c").Name)
	all, err := p.List(t.Context())
	require.NoError(t, err)
	var names []string
	var states []provider.State
	for _, m := range all {
		names, states = append(names, m.Name), append(states, m.State)
		require.Equal(t, s.Clusters[0], m.Cluster)
		require.Equal(t, "pt", m.Pool)
		require.Equal(t, "epoch-1", m.Epoch)
		require.NotEmpty(t, m.ClaimID)
		require.NotEmpty(t, m.Host)
	}
	require.Equal(t, []string{s.spec("a").Name, s.spec("b").Name, s.spec("c").Name}, names)
	require.Equal(t, []provider.State{provider.Created, provider.Running, provider.Exited}, states)
}
