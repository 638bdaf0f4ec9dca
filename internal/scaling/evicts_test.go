package scaling

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/scaling/evictable"
)

func TestAPoolSaysWhetherPodsThatWouldBeLostKeepItsNodes(t *testing.T) {
	t.Parallel()
	unmanaged := func(p *Pod) { p.OwnerKind = "" }
	local := func(p *Pod) { p.LocalStorage = []LocalVolume{{Name: "data", Kind: evictable.EmptyDir}} }
	for name, c := range map[string]struct {
		pod    func(p *Pod)
		evicts evictable.Policy
		goes   bool
	}{
		"unmanaged, blocked":             {pod: unmanaged},
		"unmanaged, deleted":             {pod: unmanaged, evicts: evictable.Policy{DeleteUnmanaged: true}, goes: true},
		"unmanaged, local ones deleted":  {pod: unmanaged, evicts: evictable.Policy{DeleteLocal: true}},
		"local data, blocked":            {pod: local},
		"local data, deleted":            {pod: local, evicts: evictable.Policy{DeleteLocal: true}, goes: true},
		"local data, unmanaged deleted":  {pod: local, evicts: evictable.Policy{DeleteUnmanaged: true}},
		"not to be disrupted, whichever": {pod: func(p *Pod) { p.Annotations = map[string]string{evictable.DoNotDisrupt: "true"} }, evicts: evictable.Policy{DeleteLocal: true, DeleteUnmanaged: true}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := idle(t, "a-1", "a-2")
			s.pool("a").Evicts = c.evicts
			s.class("keep", 600)
			s.pods("keep", "a-1", 1)
			s.class("web", 100)
			c.pod(s.pods("web", "a-2", 1))
			if !c.goes {
				require.Empty(t, s.pass(20*time.Minute))
				return
			}
			r := s.until(10 * time.Minute)
			require.Equal(t, []string{"a-2"}, drained(r))
			require.Equal(t, c.evicts, r.Drains[0].Evicts, "the drain is told, so that it does not refuse")
		})
	}
}

func TestOnlyRemovalsAreForced(t *testing.T) {
	t.Parallel()
	for action, want := range map[string]bool{ActionRemove: true, ActionDrain: false, ActionCordon: false} {
		s := idle(t, "a-1", "a-2")
		s.pool("a").ForceRemovals = true
		s.request(Request{Action: action, Node: "a-2"})
		r := s.evaluate()
		require.Len(t, r.Drains, 1, action)
		require.Equal(t, want, r.Drains[0].Force, action)
	}
	s := idle(t, "a-1", "a-2")
	s.pool("a").ForceRemovals = true
	require.True(t, s.until(10 * time.Minute).Drains[0].Force)
}
