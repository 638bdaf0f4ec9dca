package env

import (
	"fmt"
	"strings"
)

// Exports are shell lines with which kubectl, docker and the product find the
// environment.
func (e *Env) Exports() []string {
	var lines []string
	for _, variable := range []struct{ name, value string }{
		{"KUBECONFIG", e.AdminKubeconfig},
		{"DOCKER_HOST", e.DockerHost},
		{"TESTENV_READER_KUBECONFIG", e.ReaderKubeconfig},
		{"TESTENV_ACTOR_KUBECONFIG", e.ActorKubeconfig},
		{"TESTENV_K3S_URL", e.APIServerURLForNodes},
		{"TESTENV_JOIN_TOKEN_FILE", e.JoinTokenFile},
		{"TESTENV_NETWORK", e.Network},
		{"TESTENV_IMAGE", e.Image},
		{"TESTENV_LOGS", e.Logs()},
	} {
		quoted := "'" + strings.ReplaceAll(variable.value, "'", `'\''`) + "'"
		lines = append(lines, fmt.Sprintf("export %s=%s", variable.name, quoted))
	}
	return lines
}
