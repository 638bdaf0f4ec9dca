//go:build e2e

package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// e. A node that never registers fails with its log, leaves nothing, holds the
// pool back for a while, and the pool recovers.
func TestANodeThatNeverRegistersFailsWithItsLog(t *testing.T) {
	for _, c := range []struct {
		name string
		pool pool
		log  string // part of the machine's log in the event
	}{
		{"exits", pool{Image: world.ImageExits}, "fail"},
		{"token", pool{TokenFile: world.WrongTokenFile}, "401"},
		{"label", pool{Docker: "          extra_args: [--node-label=node-restriction.kubernetes.io/team=a]\n"}, "node-restriction.kubernetes.io"},
	} {
		t.Run(c.name, func(t *testing.T) {
			bad := c.pool
			bad.Max, bad.Register = 1, "8s"
			p := newProduct(t, "e2e-e-"+c.name, bad)
			ns := namespace(t, "e2e-e")
			volumes := volumeNames(t)
			p.start()
			deployment(t, ns, "web", p.cluster, 1, "200m")
			var failed []events.NodeFailed
			eventually(t, 60*time.Second, "the claim failed", func() error {
				if failed = payloads[events.NodeFailed](t, p); len(failed) == 0 {
					return fmt.Errorf("not yet")
				}
				return nil
			})
			t.Logf("%s: %s; log:\n%s", failed[0].Failure.Reason.Code, failed[0].Failure.Reason.Message, failed[0].Failure.Log)
			require.Contains(t, strings.ToLower(failed[0].Failure.Log), strings.ToLower(c.log))
			eventually(t, 30*time.Second, "its container is gone", func() error {
				for _, x := range containers(t, p.cluster) {
					if x.Names[0] == "/"+failed[0].Node {
						return fmt.Errorf("it is %s", x.State)
					}
				}
				return nil
			})
			assertGone(t, p, failed[0].Node)
			eventually(t, 30*time.Second, "no volume of a failed machine is left", func() error {
				for _, v := range volumeNames(t) {
					if !slices.Contains(volumes, v) {
						return fmt.Errorf("%s is", v)
					}
				}
				return nil
			})
			eventually(t, 20*time.Second, "a held decision names the backoff", func() error {
				for _, e := range p.history(events.TypeScaleHeld) {
					if strings.Contains(strings.ToLower(string(e.Data())), "backoff") {
						return nil
					}
				}
				return fmt.Errorf("not yet")
			})

			// The cause is gone: the pool recovers.
			p.stop()
			p.writeConfig(pool{Max: 1})
			p.start()
			waitRunning(t, ns, "web", 1, 120*time.Second)
			eventually(t, 60*time.Second, "one container is left", func() error {
				if n := len(containers(t, p.cluster)); n != 1 {
					return fmt.Errorf("%d are", n)
				}
				return nil
			})
		})
	}
}
