package provisioning

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTheLogOfAnAgentSaysWhyItDidNotJoin(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, log, code string }{
		{"a token that the server refuses", `level=error msg="Failed to validate connection to cluster at https://k3s:6443: https://k3s:6443/v1-k3s/config: 401 Unauthorized"`, ReasonTokenRejected},
		{"a token of another cluster", `level=fatal msg="Error: token CA hash does not match the Cluster CA certificate hash: 1a != 2b"`, ReasonTokenRejected},
		{"a token without its form", `level=error msg="failed to normalize token; must be in format K10<CA-HASH>::<USERNAME>:<PASSWORD> or <PASSWORD>"`, ReasonTokenRejected},
		{"a name that is used again", `level=info msg="Waiting to retrieve agent configuration; server is not ready: Node password rejected, duplicate hostname"`, ReasonPasswordRejected},
		{"a server that is not there", `level=error msg="Failed to validate connection to cluster at https://10.9.9.9:6443: failed to get CA certs: Get \"https://10.9.9.9:6443/cacerts\": dial tcp 10.9.9.9:6443: connect: no route to host"`, ReasonServerUnreachable},
		{"a label that a node may not set", `unknown 'kubernetes.io' or 'k8s.io' labels specified with --node-labels: [node-role.kubernetes.io/ci]`, ReasonLabelRefused},
		{"what passed, and then something else", "dial tcp: i/o timeout\nlevel=error msg=\"401 Unauthorized\"\nlevel=info msg=waiting", ReasonTokenRejected},
		{"nothing", "level=info msg=\"Starting k3s agent v1.34.4+k3s1\"", ""},
		{"no log", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			code, help := diagnose(c.log)
			require.Equal(t, c.code, code)
			require.Equal(t, code == "", help == "")
		})
	}
}
