package provisioning

import (
	"regexp"
	"strings"
)

// symptom is what an agent writes when it can't join, and what to do about it.
// The words are those of k3s (pkg/agent/config, pkg/nodepassword, pkg/clientaccess)
// and of the kubelet.
type symptom struct {
	says       *regexp.Regexp
	code, help string
}

var symptoms = []symptom{
	{regexp.MustCompile(`(?i)token CA hash does not match`), ReasonTokenRejected,
		"the join token belongs to another cluster, or the cluster's certificate authority was renewed: copy the server's /var/lib/rancher/k3s/server/node-token to token_file"},
	{regexp.MustCompile(`(?i)\b401 Unauthorized\b|not authorized|invalid token format|failed to normalize token`), ReasonTokenRejected,
		"the server does not accept the join token: it was rotated, or is not this server's; copy the server's /var/lib/rancher/k3s/server/node-token to token_file, which is read for each node"},
	{regexp.MustCompile(`(?i)node password rejected`), ReasonPasswordRejected,
		"the server knows a node of this name with another password: delete the secret <node>.node-password.k3s in kube-system"},
	{regexp.MustCompile(`(?i)unknown 'kubernetes\.io' or 'k8s\.io' labels|is not allowed to (set|modify) (the following )?labels|node-restriction\.kubernetes\.io`), ReasonLabelRefused,
		"a node may not give itself one of the labels of the pool or of extra_args: take it away, or use a prefix of your own"},
	{regexp.MustCompile(`(?i)failed to (get CA certs|validate connection to cluster|retrieve agent configuration)|(connection refused|no route to host|i/o timeout|no such host|context deadline exceeded)`), ReasonServerUnreachable,
		"the agent does not reach server_url from its network: see the address, the network of the pool, and firewalls"},
}

// diagnose finds why an agent did not join in the end of its log: the last line
// that tells counts, since what went before may have passed. Empty: it does not say.
func diagnose(log string) (code, help string) {
	lines := strings.Split(log, "\n")
	for i := len(lines) - 1; i >= 0; i-- {
		for _, s := range symptoms {
			if s.says.MatchString(lines[i]) {
				return s.code, s.help
			}
		}
	}
	return "", ""
}

// explainBy puts what the log says in place of a reason that only tells that the
// node did not come.
func (f failure) explainBy(log string) failure {
	f.log = log
	if code, help := diagnose(log); code != "" {
		f.code = code
		f.message += "; by its log, " + help
	}
	return f
}
