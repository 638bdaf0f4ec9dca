package config

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// all reads text and returns its problems, one a line.
func all(t *testing.T, text string) []string {
	t.Helper()
	_, err := Parse("c.yaml", []byte(text), t.TempDir())
	if err == nil {
		return nil
	}
	var errs *Errors
	require.ErrorAs(t, err, &errs)
	return strings.Split(errs.Error(), "\n")
}

func TestEveryProblemIsReportedAtOnceWithItsPlace(t *testing.T) {
	t.Parallel()
	got := all(t, `clusters:
  - name: home
    kubeconfg: in-cluster
    kubeconfig: in-cluster
    server_url: http://k3s
    token_file: missing-token
    pools:
      - name: workers
        provider: dokcer
        min: 9
        max: 3
        cpu: lots
        memory: 4Gi
        register_deadline: 2 minutes
      - name: workers
        provider: simulated
        max: -1
        cpu: 1
        memory: 0
policy:
  alert_rules:
    - name: r
      match: ["alertname=="]
      pool: wrokers
      direction: sideways
telemetry:
  log_level: loud
`)
	require.Equal(t, []string{
		`c.yaml:3:5: clusters[0].kubeconfg: unknown key (did you mean "kubeconfig"?)`,
		`c.yaml:5:17: clusters[0].server_url: is "http://k3s", expected a URL such as https://k3s:6443`,
		got[2], // names the temporary folder
		`c.yaml:9:19: clusters[0].pools[0].provider: is "dokcer" (did you mean "docker"?), expected one of docker, simulated`,
		`c.yaml:10:14: clusters[0].pools[0].min: min is 9, larger than max (3), expected min at most max`,
		`c.yaml:12:14: clusters[0].pools[0].cpu: is "lots", expected a positive amount of CPU, e.g. 2 or 500m`,
		`c.yaml:14:28: clusters[0].pools[0].register_deadline: is "2 minutes", expected a duration, e.g. 90s or 10m`,
		`c.yaml:15:15: clusters[0].pools[1].name: pool "workers" stands here twice, expected a name of its own for each`,
		`c.yaml:17:14: clusters[0].pools[1].max: is -1, expected a whole number, at least 0`,
		`c.yaml:19:17: clusters[0].pools[1].memory: is "0", expected a positive size, e.g. 512Mi or 4Gi`,
		got[10],
		`c.yaml:24:13: policy.alert_rules[0].pool: there is no pool "wrokers" (did you mean "workers"?), expected one of workers`,
		`c.yaml:25:18: policy.alert_rules[0].direction: is "sideways", expected one of up, down`,
		`c.yaml:27:14: telemetry.log_level: is "loud", expected one of debug, info, warn, error`,
	}, got)
	require.Regexp(t, `^c.yaml:6:17: clusters\[0\].token_file: file .*missing-token can't be read: no such file or directory, expected a readable file$`, got[2])
	require.Regexp(t, `^c.yaml:23:15: policy.alert_rules\[0\].match\[0\]: is "alertname==", expected one matcher of Alertmanager`, got[10])
}
