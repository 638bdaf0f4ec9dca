//go:build e2e

package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/app"
)

// fleet is the product in processes of one role each, on a NATS cluster.
type fleet struct {
	t       *testing.T
	nats    *natsCluster
	gateway *product
	members map[string][]*product // by role, without the gateway
}

// newFleet takes a product that was configured to run alone apart: its process
// becomes the gateway. Nothing runs yet, but the bus is provisioned.
func newFleet(t *testing.T, p *product, n *natsCluster) *fleet {
	t.Helper()
	f := &fleet{t: t, nats: n, gateway: p, members: map[string][]*product{}}
	text, err := os.ReadFile(p.config)
	require.NoError(t, err)
	f.configure(p, string(text), app.RoleGateway)
	administrator := &product{t: t, dir: t.TempDir()}
	f.configure(administrator, string(text), natsAdmin)
	began := time.Now()
	p.mustCLI("bus", "provision", "--config", administrator.config)
	t.Logf("provisioned in %.1f s", time.Since(began).Seconds())
	for _, role := range app.Roles() {
		size := 1
		switch role {
		case app.RoleGateway:
			continue
		case app.RoleProvisioning, app.RoleDraining:
			size = 3
		}
		for range size {
			m := &product{t: t, cluster: p.cluster, dir: t.TempDir(), token: p.token}
			f.configure(m, string(text), role)
			f.members[role] = append(f.members[role], m)
		}
	}
	t.Cleanup(f.stop)
	return f
}

// configure writes a process's own configuration, with the credential of a role.
func (f *fleet) configure(m *product, text, role string) {
	f.t.Helper()
	for _, r := range [][2]string{
		{"bus:\n  embedded: {dir: data/bus}\n", f.nats.busConfig(role)},
		// Auditing writes it, the gateway reads.
		{"path: data/audit.db", "path: " + filepath.Join(f.gateway.dir, "audit.db")},
		{"token_files: [api.token]", "token_files: [" + f.gateway.token + "]"},
	} {
		require.Contains(f.t, text, r[0])
		text = strings.Replace(text, r[0], r[1], 1)
	}
	m.config = filepath.Join(m.dir, role+".yaml")
	require.NoError(f.t, os.WriteFile(m.config, []byte(text), 0o600))
}

// start runs every process; environ is for those of a role. It returns when all
// handlers wait for events and the gateway is ready.
func (f *fleet) start(environ map[string][]string) {
	f.t.Helper()
	for _, role := range app.Roles() {
		for _, m := range f.members[role] {
			m.startEnv(append([]string{"K3S_AUTOSCALER_STEPS=" + stepsOf(m)}, environ[role]...), "--roles", role)
		}
	}
	f.gateway.startEnv(nil, "--roles", app.RoleGateway)
	f.gateway.ready()
	for role, ms := range f.members {
		for _, consumer := range consumersOf(role) {
			eventually(f.t, 60*time.Second, fmt.Sprintf("%d processes ask for the events of %s", len(ms), role), func() error {
				f.alive()
				info, err := f.nats.consumer(bus.StreamName, consumer)
				if err == nil && info.NumWaiting < len(ms) {
					err = fmt.Errorf("%d do of %s", info.NumWaiting, consumer)
				}
				return err
			})
		}
	}
}

// consumersOf are the consumers that a process of a role pulls from.
func consumersOf(role string) []string {
	switch role {
	case app.RoleCollector:
		return nil
	case app.RoleAuditing, app.RoleAnnouncing:
		return []string{role}
	}
	var out []string
	for partition := range bus.Partitions {
		out = append(out, fmt.Sprintf("%s-%d", role, partition))
	}
	return out
}

// alive fails if a process ended that was not killed by a test's hook.
func (f *fleet) alive() {
	f.t.Helper()
	for role, ms := range f.members {
		for _, m := range ms {
			if ended(m) && !killed(m) {
				b, _ := os.ReadFile(m.log.Name())
				f.t.Fatalf("a process of %s ended by itself: %s\n%s", role, m.cmd.ProcessState, lastLines(b, 40))
			}
		}
	}
}

// ended says whether the process of m is gone.
func ended(m *product) bool {
	select {
	case <-m.exited:
		return true
	default:
		return false
	}
}

func killed(m *product) bool {
	s, ok := m.cmd.ProcessState.Sys().(syscall.WaitStatus)
	return ok && s.Signaled() && s.Signal() == syscall.SIGKILL
}

// victim waits for the one process of a role that the hook has killed.
func (f *fleet) victim(role string) *product {
	f.t.Helper()
	var dead []*product
	eventually(f.t, 30*time.Second, "a process of "+role+" is killed", func() error {
		dead = nil
		for _, m := range f.members[role] {
			if ended(m) {
				dead = append(dead, m)
			}
		}
		if len(dead) == 0 {
			return fmt.Errorf("all live")
		}
		return nil
	})
	require.Len(f.t, dead, 1, "processes of %s that ended", role)
	f.alive()
	return dead[0]
}

func (f *fleet) stop() {
	for role, ms := range f.members {
		for i, m := range ms {
			m.stop()
			showLog(f.t, fmt.Sprintf("process %d of %s", i, role), filepath.Join(m.dir, "run.log"), 60)
		}
	}
}

// settled waits until no event waits for the handlers that act.
func (f *fleet) settled() {
	f.t.Helper()
	for _, role := range []string{app.RoleProvisioning, app.RoleDraining} {
		for partition := range bus.Partitions {
			eventually(f.t, 60*time.Second, role+" has handled every event", func() error {
				info, err := f.nats.consumer(bus.StreamName, fmt.Sprintf("%s-%d", role, partition))
				if err == nil && info.NumPending+uint64(info.NumAckPending) > 0 {
					err = fmt.Errorf("%d wait and %d are in flight in partition %d", info.NumPending, info.NumAckPending, partition)
				}
				return err
			})
		}
	}
}

// stepsOf is the file with the steps that a process passed.
func stepsOf(m *product) string { return filepath.Join(m.dir, "steps") }

// passed counts how often a process passed a step.
func passed(t *testing.T, m *product, step string) int {
	t.Helper()
	b, err := os.ReadFile(stepsOf(m))
	if os.IsNotExist(err) {
		return 0
	}
	require.NoError(t, err)
	n := 0
	for line := range bytes.Lines(b) {
		if string(bytes.TrimSpace(line)) == step {
			n++
		}
	}
	return n
}

// refusals returns the lines in which a process says that the server refused it
// something.
func (f *fleet) refusals() []string {
	f.t.Helper()
	var out []string
	all := []*product{f.gateway}
	for _, ms := range f.members {
		all = append(all, ms...)
	}
	for _, m := range all {
		b, err := os.ReadFile(m.log.Name())
		require.NoError(f.t, err)
		for line := range strings.Lines(string(b)) {
			if strings.Contains(line, "refused a request") {
				out = append(out, line)
			}
		}
	}
	return out
}
