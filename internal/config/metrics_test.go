package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

const withPrometheus = `clusters:
  - name: home
    prometheus: {url: "http://prometheus:9090"}
    pools:
      - {name: sim, provider: simulated, max: 3, cpu: 1, memory: 1Gi}
`

func rules(text ...string) string {
	return withPrometheus + "policy:\n  metric_rules:\n    - {" + strings.Join(text, "}\n    - {") + "}\n"
}

func TestMetricRulesBecomePartOfThePolicy(t *testing.T) {
	t.Parallel()
	c, err := Parse("c.yaml", []byte(rules(
		"name: queue, pool: sim, query: sum(queue), scale_down: true, target_value: {target: 10}",
		"name: pushed, pool: sim, signal: ci/queue, pass_through: true",
		"name: busy, pool: sim, metric: cpu-requests, interval: 30s, stale_after: 2m, threshold: {at_least: 0.8, of: 7, delta: 2}",
		"name: elsewhere, cluster: home, pool: sim, query: up, fixed: 0")), t.TempDir())
	require.NoError(t, err)
	require.Equal(t, 5*time.Second, c.Clusters[0].Prometheus.Timeout.Std())
	high, two, none := 0.8, 2, 0
	seconds := events.Duration(time.Second)
	require.Equal(t, []events.MetricRule{
		{Name: "queue", Pool: "sim", Query: "sum(queue)", Interval: 15 * seconds, StaleAfter: 60 * seconds, MayAdd: true, MayRemove: true, TargetValue: &events.TargetValue{Target: 10, DeadBand: 0.01}},
		{Name: "pushed", Pool: "sim", Signal: "ci/queue", Interval: 15 * seconds, StaleAfter: 300 * seconds, MayAdd: true, PassThrough: true},
		{Name: "busy", Pool: "sim", Metric: "cpu-requests", Interval: 30 * seconds, StaleAfter: 120 * seconds, MayAdd: true, Threshold: &events.MetricThreshold{AtLeast: &high, Points: 5, Of: 7, Delta: &two}},
		{Name: "elsewhere", Pool: "sim", Query: "up", Interval: 15 * seconds, StaleAfter: 60 * seconds, MayAdd: true, Fixed: &none},
	}, c.Policy("home").MetricRules)
	require.Equal(t, []string{"ci/queue"}, c.Signals("home"))
}

func TestEachMistakeInAMetricRuleIsNamed(t *testing.T) {
	t.Parallel()
	const whole = "name: r, pool: sim, query: up"
	for name, c := range map[string]struct{ text, want string }{
		"no source":                        {rules("name: r, pool: sim, fixed: 1"), `policy.metric_rules[0]: has no source, expected one of metric, signal and query`},
		"an empty source":                  {rules("name: r, pool: sim, query: , fixed: 1"), `policy.metric_rules[0]: has no source`},
		"two sources":                      {rules(whole + ", signal: s, fixed: 1"), `policy.metric_rules[0].signal: stands beside query, expected one of metric, signal and query`},
		"no strategy":                      {rules(whole), `policy.metric_rules[0]: has no strategy, expected one of target_value, threshold, pass_through and fixed`},
		"two strategies":                   {rules(whole + ", fixed: 1, pass_through: true"), `policy.metric_rules[0].pass_through: stands beside fixed, expected one strategy`},
		"an unknown metric":                {rules("name: r, pool: sim, metric: cpu, fixed: 1"), `policy.metric_rules[0].metric: is "cpu", expected one of cpu-requests, memory-requests, cpu-usage, memory-usage, pending-pods`},
		"an unknown pool":                  {rules("name: r, pool: sym, query: up, fixed: 1"), `policy.metric_rules[0].pool: there is no pool "sym" (did you mean "sim"?), expected one of sim`},
		"an unknown cluster":               {rules(whole + ", cluster: work, fixed: 1"), `policy.metric_rules[0].cluster: there is no cluster "work"`},
		"a name twice":                     {rules(whole+", fixed: 1", whole+", fixed: 2"), `policy.metric_rules[1].name: rule "r" stands here twice`},
		"a name with blanks":               {rules("name: a b, pool: sim, query: up, fixed: 1"), `policy.metric_rules[0].name: is "a b", expected letters, digits and any of _.:/-`},
		"a signal with blanks":             {rules("name: r, pool: sim, signal: a b, fixed: 1"), `policy.metric_rules[0].signal: is "a b", expected letters, digits`},
		"an interval of a signal":          {rules("name: r, pool: sim, signal: s, interval: 15s, fixed: 1"), `policy.metric_rules[0].interval: is for a query or a metric`},
		"an interval that is too short":    {rules(whole + ", interval: 1s, fixed: 1"), `policy.metric_rules[0].interval: is 1s, expected at least 5s for a query`},
		"an interval as the timeout":       {rules(whole + ", interval: 5s, fixed: 1"), `policy.metric_rules[0].interval: interval is 5s, not longer than the timeout of the Prometheus of cluster home (5s), expected an interval longer than prometheus.timeout`},
		"stale before the next":            {rules(whole + ", stale_after: 20s, fixed: 1"), `policy.metric_rules[0].stale_after: is 20s, less than two intervals (15s), expected at least twice the interval`},
		"no Prometheus":                    {strings.Replace(rules(whole+", fixed: 1"), `    prometheus: {url: "http://prometheus:9090"}`+"\n", "", 1), `policy.metric_rules[0].query: cluster home has no Prometheus to answer it, expected clusters[].prometheus`},
		"a rule that may do nothing":       {rules(whole + ", fixed: 1, scale_up: false"), `policy.metric_rules[0].scale_up: may neither add nor remove nodes, expected scale_up or scale_down`},
		"no target":                        {rules(whole + ", target_value: {}"), `policy.metric_rules[0].target_value.target: is missing`},
		"a target of nothing":              {rules(whole + ", target_value: {target: 0}"), `policy.metric_rules[0].target_value.target: is 0, expected a number above 0`},
		"a dead band of all":               {rules(whole + ", target_value: {target: 1, dead_band: 1}"), `target_value.dead_band: is 1, expected a number from 0 to 0.9`},
		"a target that is no number":       {rules(whole + ", target_value: {target: .nan}"), `target_value.target: is ".nan", expected a number`},
		"a threshold without bounds":       {rules(whole + ", threshold: {delta: 1}"), `policy.metric_rules[0].threshold: has no bound, expected at_least, below, or both`},
		"bounds that hold nothing":         {rules(whole + ", threshold: {at_least: 5, below: 5, delta: 1}"), `threshold.at_least: at_least is 5, not smaller than below (5): no point lies within`},
		"more points than are looked at":   {rules(whole + ", threshold: {at_least: 5, points: 5, of: 4, delta: 1}"), `threshold.of: is 4, smaller than points (5), expected at least as many as points`},
		"too many points":                  {rules(whole + ", threshold: {at_least: 5, points: 101, delta: 1}"), `threshold.points: is 101, expected a whole number from 1 to 100`},
		"a threshold without nodes":        {rules(whole + ", threshold: {at_least: 5}"), `policy.metric_rules[0].threshold: says nothing about nodes, expected one of delta, percent and nodes`},
		"a threshold that says two things": {rules(whole + ", threshold: {at_least: 5, delta: 1, percent: 10}"), `threshold: says several things: delta, percent`},
		"a delta of nothing":               {rules(whole + ", threshold: {at_least: 5, delta: 0}"), `threshold.delta: is 0, which does nothing`},
		"fewer without the right":          {rules(whole + ", threshold: {below: 5, delta: -1}"), `threshold.delta: is -1, and the rule may not remove nodes, expected scale_down: true, or a number above 0`},
		"more without the right":           {rules(whole + ", scale_up: false, scale_down: true, threshold: {at_least: 5, percent: 10}"), `threshold.percent: is 10, and the rule may not add nodes`},
		"a Prometheus without an address":  {strings.Replace(withPrometheus, "http://", "", 1), `clusters[0].prometheus.url: is "prometheus:9090", expected a URL such as http://prometheus:9090`},
		"a Prometheus without url":         {strings.Replace(withPrometheus, `url: "http://prometheus:9090"`, "timeout: 5s", 1), `clusters[0].prometheus.url: is missing`},
		"a password in the address":        {strings.Replace(withPrometheus, "http://", "http://me:secret@", 1), `clusters[0].prometheus.url: holds a user, whose password everyone would see who reads the file, expected username and password_file`},
		"a user without a password":        {strings.Replace(withPrometheus, `9090"}`, `9090", username: me}`, 1), `clusters[0].prometheus.username: stands alone, expected username and password_file together`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := all(t, c.text)
			require.Len(t, got, 1, "one mistake, one message: %s", strings.Join(got, "\n"))
			require.Contains(t, got[0], c.want)
			require.NotContains(t, got[0], "secret")
		})
	}
}

func TestHowToLogInToPrometheusIsSaidOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "secret"), []byte("x"), 0o600))
	parse := func(text string) (*Config, error) {
		return Parse("c.yaml", []byte(strings.Replace(withPrometheus, `9090"}`, `9090", `+text+`}`, 1)), dir)
	}
	_, err := parse("username: me, password_file: secret, token_file: secret")
	require.ErrorContains(t, err, "prometheus.token_file: stands beside username")
	_, err = parse("ca_file: secret")
	require.ErrorContains(t, err, "prometheus.ca_file: is for an https address")
	c, err := parse("token_file: secret")
	require.NoError(t, err)
	require.Contains(t, (&Errors{Problems: c.Warnings()}).Error(), "clusters[0].prometheus.url: the secret that logs in there travels unencrypted")
}
