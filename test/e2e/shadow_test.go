//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/api"
)

// A candidate policy with room for more is judged beside one that is at its
// maximum; nothing comes of it until it is promoted.
func TestACandidatePolicyIsJudgedActsOnNothingAndIsPromoted(t *testing.T) {
	p := newProduct(t, "e2e-shadow", pool{Max: 1, Unneeded: "1h"})
	ns := namespace(t, "e2e-shadow")
	p.start()
	eventually(t, 60*time.Second, "decision has a checkpoint", func() error {
		if len(p.history(events.TypeDecisionCheckpointed)) == 0 {
			return fmt.Errorf("none")
		}
		return nil
	})
	text, err := os.ReadFile(p.config)
	require.NoError(t, err)
	require.Contains(t, string(text), "        max: 1\n")
	candidate := filepath.Join(p.dir, "candidate.yaml")
	require.NoError(t, os.WriteFile(candidate, []byte(strings.Replace(string(text), "        max: 1\n", "        max: 3\n", 1)), 0o600))
	t.Logf("shadow start:\n%s", p.mustCLI("shadow", "start", candidate, "--reason", "is one node enough?"))

	// A node takes two of these pods: three nodes for five of them.
	deployment(t, ns, "web", p.cluster, 5, "200m")
	waitRunning(t, ns, "web", 2, 90*time.Second)
	diff := func() (d api.ShadowDiff) {
		t.Helper()
		require.NoError(t, json.Unmarshal([]byte(p.mustCLI("shadow", "diff", "-o", "json")), &d))
		return d
	}
	eventually(t, 60*time.Second, "the candidate would add two nodes", func() error {
		if d := diff(); d.Added < 2 {
			return fmt.Errorf("it would add %d, in %d differences", d.Added, len(d.Differences))
		}
		return nil
	})
	d := diff()
	last := d.Differences[len(d.Differences)-1]
	require.Equal(t, events.EffectAdd, last.Effect)
	require.Equal(t, "UnschedulablePods", last.Candidate.Reason.Code)
	require.Equal(t, 3, last.Candidate.Max)
	require.Equal(t, 1, last.Live.Max)
	require.True(t, last.Until.IsZero(), "it lasts")
	require.Zero(t, d.Shadow.Corrected, "the shadow has the state that decision has")
	t.Logf("shadow diff:\n%s", p.mustCLI("shadow", "diff", "--since", "1h"))
	status := p.mustCLI("status")
	t.Logf("status:\n%s", status)
	require.Contains(t, status, "SHADOW: ")
	never(t, 5*time.Second, "a container that nobody in force wants", func() bool { return len(containers(t, p.cluster)) > 1 })
	require.Len(t, p.history(events.TypeNodeClaimed), 1)
	for _, e := range p.history("") {
		if strings.HasSuffix(e.Source(), "/"+events.HandlerShadow) {
			require.Equal(t, events.TypeShadowDecided, e.Type())
		}
	}

	t.Logf("shadow promote:\n%s", p.mustCLI("shadow", "promote", "--reason", "three are better"))
	waitRunning(t, ns, "web", 5, 120*time.Second)
	require.Len(t, containers(t, p.cluster), 3)
	promoted := payloads[events.PolicyPromoted](t, p)
	require.Len(t, promoted, 1)
	require.Equal(t, "three are better", promoted[0].Reason)
	require.NotEmpty(t, promoted[0].Actor)
	status = p.mustCLI("status")
	require.Contains(t, status, "PROMOTED: the policy in force was promoted by "+promoted[0].Actor)
	require.NotContains(t, status, "SHADOW")

	// A start takes nothing back; the file, put in place, ends the matter.
	p.stop()
	p.start()
	eventually(t, 60*time.Second, "the promoted policy is in force", func() error {
		if s := p.mustCLI("status"); !strings.Contains(s, "PROMOTED") {
			return fmt.Errorf("%s", s)
		}
		return nil
	})
	p.stop()
	text, err = os.ReadFile(candidate)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(p.config, text, 0o600))
	p.start()
	eventually(t, 60*time.Second, "the file's policy is in force", func() error {
		if s := p.mustCLI("status"); strings.Contains(s, "PROMOTED") {
			return fmt.Errorf("%s", s)
		}
		return nil
	})
	_, ready := ourNodes(t, p.cluster)
	require.Equal(t, 3, ready)
	require.Len(t, payloads[events.PolicyPromoted](t, p), 1)
}
