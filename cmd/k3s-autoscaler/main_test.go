package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/cli"
)

// testBundle is a NATS server and a configuration that uses it.
type testBundle struct {
	js     jetstream.JetStream
	config string
}

func setup(t *testing.T, more string) *testBundle {
	t.Helper()
	dir := t.TempDir()
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: dir, NoSigs: true, NoLog: true})
	require.NoError(t, err)
	s.Start()
	t.Cleanup(func() {
		s.Shutdown()
		s.WaitForShutdown()
	})
	require.True(t, s.ReadyForConnections(20*time.Second))
	nc, err := nats.Connect(s.ClientURL())
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	b := &testBundle{config: filepath.Join(dir, "config.yaml")}
	b.js, err = jetstream.New(nc)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(b.config, fmt.Appendf(nil,
		"clusters: [{name: home, pools: [{name: a, provider: simulated, max: 1, cpu: 1, memory: 1Gi}]}]\nbus: {url: %q, %s}\naudit: {sqlite: {path: audit.db}}\n",
		s.ClientURL(), more), 0o600))
	return b
}

// execute runs one command line of the program; it ends with the test.
func (b *testBundle) execute(t *testing.T, args ...string) (code int, out, errOut string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code = cli.Execute(t.Context(), cli.Options{Version: "test", Run: run, Demo: show, BusProvision: provision, BusPermissions: permissions,
		Stdout: &stdout, Stderr: &stderr}, append(args, "--config", b.config))
	return code, stdout.String(), stderr.String()
}

// remake makes the stream of record anew, changed by somebody.
func (b *testBundle) remake(t *testing.T, change func(*jetstream.StreamConfig)) {
	t.Helper()
	s, err := b.js.Stream(t.Context(), bus.StreamName)
	require.NoError(t, err)
	c := s.CachedInfo().Config
	change(&c)
	require.NoError(t, b.js.DeleteStream(t.Context(), bus.StreamName))
	_, err = b.js.CreateStream(t.Context(), c)
	require.NoError(t, err)
}

func TestRunRefusesAStreamOfAnotherVersion(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*jetstream.StreamConfig)
		want   string
	}{
		"another schema": {func(c *jetstream.StreamConfig) { c.Metadata["k3sas_schema"] = "2" },
			`metadata k3sas_schema: is "2", this version needs "1"`},
		"another number of partitions": {func(c *jetstream.StreamConfig) { c.Metadata["k3sas_partitions"] = "32" },
			`metadata k3sas_partitions: is "32", this version needs "16"`},
		"somebody else's stream": {func(c *jetstream.StreamConfig) { c.Metadata = nil },
			`metadata k3sas_incarnation: is missing`},
		"events can be taken back": {func(c *jetstream.StreamConfig) { c.DenyPurge = false },
			`allows rollup, delete or purge`},
	} {
		for _, provisioned := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, provisioned %t", name, provisioned), func(t *testing.T) {
				t.Parallel()
				b := setup(t, fmt.Sprintf("provisioned: %t", provisioned))
				code, out, errOut := b.execute(t, "bus", "provision")
				require.Equal(t, cli.ExitOK, code, errOut)
				require.Regexp(t, `stream +K3SAS +created`, out)
				b.remake(t, c.change)
				code, _, errOut = b.execute(t, "run", "--roles", "decision")
				require.Equal(t, cli.ExitFailure, code)
				require.Contains(t, errOut, "the stream of record is incompatible with this version")
				require.Contains(t, errOut, c.want)
				require.Contains(t, errOut, "use another NATS account or storage directory, or the version that made it")
				code, _, errOut = b.execute(t, "bus", "provision")
				require.Equal(t, cli.ExitFailure, code, "provisioning does not change it either")
				require.Contains(t, errOut, c.want)
			})
		}
	}
}

func TestRunSaysWhatIsNotProvisionedAndWhichReplicasThereAreNot(t *testing.T) {
	t.Parallel()
	b := setup(t, "provisioned: true")
	code, _, errOut := b.execute(t, "run", "--roles", "decision")
	require.Equal(t, cli.ExitFailure, code)
	require.Contains(t, errOut, "stream K3SAS is missing")
	require.Contains(t, errOut, "run 'k3s-autoscaler bus provision'")

	b = setup(t, "replicas: 3")
	for _, args := range [][]string{{"bus", "provision"}, {"run", "--roles", "decision"}} {
		code, _, errOut = b.execute(t, args...)
		require.Equal(t, cli.ExitFailure, code)
		require.Contains(t, errOut, "replicas is 3, but the NATS server is alone: set bus.replicas to 1, or use a cluster of at least 3 servers")
	}
}
