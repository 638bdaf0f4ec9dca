package cli

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTheBusCommandsRefuseWhatMakesNoSense(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	embedded, external := filepath.Join(dir, "embedded.yaml"), filepath.Join(dir, "external.yaml")
	const clusters = "clusters: [{name: home, pools: [{name: a, provider: simulated, max: 1, cpu: 1, memory: 1Gi}]}]\n"
	require.NoError(t, os.WriteFile(embedded, []byte(clusters), 0o600))
	require.NoError(t, os.WriteFile(external, []byte(clusters+"bus: {url: 'nats://nats:4222'}\n"), 0o600))

	var provisioned, permitted []string
	run := func(args ...string) (int, string) {
		var out, errOut bytes.Buffer
		code := Execute(t.Context(), Options{
			Stdout: &out, Stderr: &errOut, ConfigDir: dir,
			BusProvision: func(_ context.Context, o ProvisionOptions) error {
				provisioned = append(provisioned, o.Config.Bus.URL)
				return nil
			},
			BusPermissions: func(o PermissionsOptions) error {
				permitted = append(permitted, o.Users...)
				return nil
			},
		}, append([]string{"bus"}, args...))
		return code, errOut.String()
	}
	for want, args := range map[string][]string{
		"the embedded bus provisions itself":  {"provision", "--config", embedded},
		`there is no role "barista"`:          {"permissions", "--role", "gateway,barista"},
		`-o: is "xml", expected one of nats,`: {"permissions", "-o", "xml"},
		"name a subcommand":                   {},
	} {
		code, errOut := run(args...)
		require.Equal(t, ExitUsage, code, want)
		require.Contains(t, errOut, want)
	}
	code, errOut := run("provision", "--config", external)
	require.Equal(t, ExitOK, code, errOut)
	code, _ = run("permissions", "--role", "gateway,collector", "--role", "draining")
	require.Equal(t, ExitOK, code)
	require.Equal(t, []string{"nats://nats:4222"}, provisioned)
	require.Equal(t, []string{"gateway,collector", "draining"}, permitted)
}
