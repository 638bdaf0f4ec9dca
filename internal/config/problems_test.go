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
		`c.yaml:9:19: clusters[0].pools[0].provider: is "dokcer" (did you mean "docker"?), expected one of docker, simulated, externalgrpc`,
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

func TestEachMistakeIsNamed(t *testing.T) {
	t.Parallel()
	pool := func(s string) string {
		return "clusters:\n  - name: home\n    kubeconfig: in-cluster\n    pools:\n      - name: w\n        provider: docker\n        max: 3\n        cpu: 1\n        memory: 1Gi\n" + s
	}
	cases := map[string]struct{ text, want string }{
		"an empty file":                         {"", `c.yaml:1:1: clusters: is missing`},
		"no clusters":                           {"clusters: []", `clusters: is an empty list`},
		"not a list":                            {"clusters: 3", `c.yaml:1:11: clusters: is "3", expected a list`},
		"not a mapping":                         {"clusters: [3]", `c.yaml:1:12: clusters[0]: is "3", expected a mapping`},
		"an empty item":                         {"clusters: [~]", `clusters[0]: is empty`},
		"the file is a list":                    {"- a", `is a list, expected a mapping`},
		"no YAML":                               {"a: [", `is no YAML`},
		"two documents":                         {minimal + "---\n" + minimal, `c.yaml:6:1: holds more than one YAML document`},
		"the same key twice":                    {minimal + "bus: {in_flight: 1, in_flight: 2}", `bus.in_flight: the key stands here twice`},
		"an empty required key":                 {"clusters:\n  - name:\n    pools: []\n", `c.yaml:2:5: clusters[0].name: is empty`},
		"a name with capitals":                  {strings.Replace(minimal, "home", "Home", 1), `clusters[0].name: is "Home", expected a DNS label`},
		"a pool name that is too long":          {strings.Replace(minimal, "sim,", strings.Repeat("s", 53)+",", 1), `at most 52 characters`},
		"two clusters of a name":                {minimal + strings.TrimPrefix(minimal, "clusters:\n"), `cluster "home" stands here twice`},
		"no kubeconfig":                         {strings.Replace(pool(""), "    kubeconfig: in-cluster\n", "", 1), `clusters[0].kubeconfig: is missing`},
		"a label that is ours":                  {pool("        labels: {k3s-autoscaler.dev/pool: x}"), `labels.k3s-autoscaler.dev/pool: the label is set by k3s-autoscaler itself`},
		"a bad label key":                       {pool("        labels: {'a b': x}"), `is no label key`},
		"a bad label value":                     {pool("        labels: {a: 'x y'}"), `is no label value`},
		"a label that is a list":                {pool("        labels: {a: [b]}"), `labels.a: is a list, expected a text`},
		"labels that are a list":                {pool("        labels: [a]"), `labels: is a list, expected a mapping of keys`},
		"a bad taint":                           {pool("        taints: ['a=b:Never']"), `taints[0]: is "a=b:Never", expected a taint`},
		"a taint without key":                   {pool("        taints: [':NoSchedule']"), `expected a taint`},
		"a bad startup taint":                   {pool("        startup_taints: ['a=b:Never']"), `startup_taints[0]: is "a=b:Never", expected a taint`},
		"a startup taint without effect":        {pool("        startup_taints: [a]"), `startup_taints[0]: is "a", expected a taint`},
		"a startup taint that is soft":          {pool("        startup_taints: ['a:PreferNoSchedule']"), `startup_taints[0]: is "a:PreferNoSchedule", which keeps no pod off the node, expected the effect NoSchedule or NoExecute`},
		"a startup taint that stays":            {pool("        taints: ['a=b:NoSchedule']\n        startup_taints: ['c:NoSchedule', 'a:NoSchedule']"), `startup_taints[1]: is "a:NoSchedule", whose key and effect stand in taints, too, expected a taint in one of both`},
		"a startup taint twice":                 {pool("        startup_taints: ['a:NoSchedule', 'a=b:NoSchedule']"), `startup_taints[1]: is "a=b:NoSchedule", whose key and effect stand here twice, expected each key and effect once`},
		"no way to choose a pool":               {minimal + "policy: {pool_choice: [cheapest]}", `policy.pool_choice[0]: is "cheapest", expected one of least-waste, priority, price, most-pods, least-nodes, balance`},
		"a choice that stands twice":            {minimal + "policy: {pool_choice: [priority, priority]}", `policy.pool_choice[1]: choice "priority" stands here twice, expected a name of its own for each`},
		"a choice by absent prices":             {minimal + "policy: {pool_choice: [price]}", `clusters[0].pools[0].price: is missing, expected what a node of the pool costs an hour, because policy.pool_choice has price`},
		"a price below nothing":                 {pool("        price: -1\n"), `clusters[0].pools[0].price: is -1, expected a number from 0 to 1000`},
		"a cutoff that is no number":            {minimal + "policy: {expendable_pods_priority_cutoff: low}", `policy.expendable_pods_priority_cutoff: is "low", expected a whole number from -2147483648 to 1000000000`},
		"a cutoff above every priority":         {minimal + "policy: {expendable_pods_priority_cutoff: 2000000000}", `policy.expendable_pods_priority_cutoff: is 2000000000, expected a whole number from -2147483648 to 1000000000`},
		"backoff initial over max":              {pool("        backoff: {initial: 1h}"), `backoff.initial: initial is 1h, longer than max (10m)`},
		"a negative duration":                   {pool("        claim_expiry: -1s"), `claim_expiry: is "-1s", expected a positive duration`},
		"a threshold over 1":                    {pool("        scale_down: {utilization_threshold: 50}"), `is 50, expected a number from 0 to 1`},
		"an order of removal that there is not": {pool("        scale_down: {order: oldest}"), `scale_down.order: is "oldest" (did you mean "newest"?), expected one of newest, least-utilized, cheapest-to-move`},
		"no time for Jobs":                      {pool("        scale_down: {jobs: finish, jobs_deadline: 0s}"), `scale_down.jobs_deadline: is 0s, expected how long pods of Jobs may go on, such as 1h, or jobs: evict`},
		"a deadline that does something else":   {pool("        drain: {on_deadline: remove}"), `drain.on_deadline: is "remove", expected one of uncordon, force`},
		"local storage that is moved":           {pool("        drain: {local_storage: move}"), `drain.local_storage: is "move", expected one of block, delete`},
		"unmanaged pods that are kept":          {pool("        drain: {unmanaged: keep}"), `drain.unmanaged: is "keep", expected one of block, delete`},
		"Jobs that do something else":           {pool("        scale_down: {jobs: wait}"), `scale_down.jobs: is "wait", expected one of evict, finish`},
		"a former name that a pool has":         {pool("        renamed_from: [w]"), `renamed_from[0]: is "w", which is a pool of this file, expected a name that no pool has any more`},
		"a former name twice":                   {pool("        renamed_from: [old, old]"), `renamed_from[1]: former name "old" stands here twice`},
		"a former name that is none":            {pool("        renamed_from: [Old_Pool]"), `renamed_from[0]: is "Old_Pool", expected a name that the pool had`},
		"a budget of nothing":                   {pool("        scale_down: {budgets: [{schedule: '0 9 * * *', duration: 8h}]}"), `scale_down.budgets[0].nodes: is missing`},
		"a budget that is no number":            {pool("        scale_down: {budgets: [{nodes: few}]}"), `scale_down.budgets[0].nodes: is "few", expected a number of nodes such as 0 or 2, or a share of the pool such as 10%`},
		"a budget without a window":             {pool("        scale_down: {budgets: [{nodes: 1}, {nodes: 0, schedule: '0 9 * * *'}]}"), `scale_down.budgets[1]`},
		"a budget at no time":                   {pool("        scale_down: {budgets: [{nodes: 0, schedule: at nine, duration: 8h}]}"), `scale_down.budgets[0].schedule: is "at nine", expected five fields as cron has them`},
		"a budget of no zone":                   {pool("        scale_down: {budgets: [{nodes: 0, schedule: '0 9 * * *', duration: 8h, timezone: Mars}]}"), `scale_down.budgets[0].timezone: is "Mars", expected a name of the tz database`},
		"a schedule that sets nothing":          {pool("        schedules: [{name: s, schedule: '0 8 * * *', duration: 8h}]"), `schedules[0]: sets nothing, expected min, max or headroom`},
		"headroom for pods that have no room":   {pool("        headroom: {pods: 1, pod: {cpu: 2}}"), `headroom.pod.cpu: a pod of the headroom asks for 2 CPU, a node has 1, expected pod.cpu at most cpu of the pool`},
		"a schedule's headroom without room":    {pool("        schedules: [{name: s, schedule: '0 8 * * *', duration: 8h, headroom: {pods: 1, pod: {memory: 2Gi}}}]"), `schedules[0].headroom.pod.memory: a pod of the headroom asks for 2Gi of memory, a node has 1Gi, expected pod.memory at most memory of the pool`},
		"more headroom than there can be":       {pool("        headroom: {percent: 95}"), `headroom.percent: is 95, expected a whole number from 0 to 90`},
		"headroom below nothing":                {pool("        headroom: {pods: -1}"), `headroom.pods: is -1, expected a whole number from 0 to 10000`},
		"a schedule at no time":                 {pool("        schedules: [{name: s, schedule: at eight, duration: 8h, min: 1}]"), `schedules[0].schedule: is "at eight", expected five fields as cron has them`},
		"a schedule without a beginning":        {pool("        schedules: [{name: s, duration: 8h, min: 1}]"), `schedules[0].schedule: is missing`},
		"a schedule without an end":             {pool("        schedules: [{name: s, schedule: '0 8 * * *', min: 1}]"), `schedules[0].duration: is missing`},
		"a schedule of no zone":                 {pool("        schedules: [{name: s, schedule: '0 8 * * *', duration: 8h, timezone: Mars, min: 1}]"), `schedules[0].timezone: is "Mars", expected a name of the tz database`},
		"two schedules of a name":               {pool("        schedules: [{name: s, schedule: '0 8 * * *', duration: 8h, min: 1}, {name: s, schedule: '0 8 * * *', duration: 8h, min: 1}]"), `schedules[1].name: schedule "s" stands here twice`},
		"a schedule below nothing":              {pool("        schedules: [{name: s, schedule: '0 8 * * *', duration: 8h, min: -1}]"), `schedules[0].min: is -1, expected a whole number, at least 0`},
		"a schedule that contradicts itself":    {pool("        schedules: [{name: s, schedule: '0 8 * * *', duration: 8h, min: 3, max: 2}]"), `schedules[0].min: min is 3, larger than max (2), expected min at most max`},
		"a schedule above the pool":             {pool("        schedules: [{name: s, schedule: '0 8 * * *', duration: 8h, min: 4}]"), `schedules[0].min: min is 4, larger than the pool's max (3), expected min at most max; a schedule may set a max of its own`},
		"a schedule below the pool":             {pool("        min: 2\n        schedules: [{name: s, schedule: '0 8 * * *', duration: 8h, max: 1}]"), `schedules[0].max: max is 1, smaller than the pool's min (2), expected max at least min; a schedule may set a min of its own`},
		"schedules that contradict each other":  {pool("        schedules: [{name: s, schedule: '0 8 * * *', duration: 8h, min: 3}, {name: u, schedule: '0 12 * * 6', duration: 8h, max: 1, timezone: Europe/Berlin}]"), `schedules[0].min: min is 3, larger than max (1) of schedule "u", and both are open at 11:00 on Sat 6 Jan 2024 UTC, expected min at most max wherever two windows overlap`},
		"a threshold that is no number":         {pool("        scale_down: {utilization_threshold: .nan}"), `expected a number from 0 to 1`},
		"a count with a fraction":               {pool("        min: 1.5"), `min: is "1.5", expected a whole number, at least 0`},
		"a block for another provider":          {strings.Replace(pool("        docker: {}"), "provider: docker", "provider: simulated", 1), `docker: settings of docker in a pool of provider "simulated"`},
		"a docker host over http":               {pool("        docker: {host: 'http://x'}"), `docker.host: is "http://x"`},
		"a docker host by ssh without a user":   {pool("        docker: {host: 'ssh://x'}"), `docker.host: is "ssh://x"`},
		"a docker host by ssh without a key":    {pool("        docker: {host: 'ssh://me@x'}"), `docker.host: has no ssh beside it`},
		"host beside hosts":                     {pool("        docker: {host: 'tcp://y:1', hosts: [{name: a, host: 'tcp://x:1'}]}"), `docker.host: stands beside hosts`},
		"no hosts":                              {pool("        docker: {hosts: []}"), `docker.hosts: is an empty list`},
		"two hosts of one name":                 {pool("        docker: {hosts: [{name: a, host: 'tcp://x:1'}, {name: a, host: 'tcp://y:1'}]}"), `hosts[1].name: host "a" stands here twice`},
		"one engine under two names":            {pool("        docker: {hosts: [{name: a, host: 'tcp://x:1'}, {name: b, host: 'tcp://x:1'}]}"), `hosts[1].host: is named "a" in clusters[0].pools[0].docker.hosts[0]`},
		"one name with two settings": {pool("        docker: {hosts: [{name: a, host: 'tcp://x:1'}]}\n      - {name: v, provider: docker, max: 1, cpu: 1, memory: 1Gi, docker: {hosts: [{name: a, host: 'tcp://x:1', cpu: 4}]}}"),
			`pools[1].docker.hosts[0].name: host "a" has other settings in clusters[0].pools[0].docker.hosts[0]`},
		"a host name that is none":       {pool("        docker: {hosts: [{name: A_b, host: 'tcp://x:1'}]}"), `hosts[0].name: is "A_b"`},
		"tls for ssh":                    {pool("        docker: {hosts: [{name: a, host: 'unix:///x', tls: {}}]}"), `hosts[0].tls: is for tcp://`},
		"gpus that are none":             {pool("        docker: {gpus: some}"), `docker.gpus: is "some", expected all, a number above 0, or device=ID,ID`},
		"a relative mount":               {pool("        docker: {mounts: ['a:/b']}"), `docker.mounts[0]: is "a:/b"`},
		"a token among the arguments":    {pool("        docker: {extra_args: ['--token=x']}"), `extra_args[0]: holds the join token`},
		"a token in the environment":     {pool("        docker: {env: {K3S_TOKEN: x}}"), `env.K3S_TOKEN: holds the join token`},
		"an unknown pull mode":           {pool("        docker: {pull: sometimes}"), `expected one of missing, always, never`},
		"an unknown default cluster":     {minimal + "alerting: {default_cluster: hom}", `there is no cluster "hom" (did you mean "home"?)`},
		"a rule of an unknown cluster":   {minimal + "policy: {alert_rules: [{name: a, match: ['a=\"b\"'], cluster: x, pool: sim, direction: up}]}", `alert_rules[0].cluster: there is no cluster "x"`},
		"two rules of a name":            {minimal + "policy: {alert_rules: [{name: a, match: ['a=\"b\"'], pool: sim, direction: up}, {name: a, match: ['a=\"b\"'], pool: sim, direction: up}]}", `rule "a" stands here twice`},
		"a rule without matchers":        {minimal + "policy: {alert_rules: [{name: a, match: [], pool: sim, direction: up}]}", `match: is an empty list`},
		"a protected node with a slash":  {minimal + "policy: {protected_nodes: ['a/b']}", `protected_nodes[0]: is "a/b", expected the name of a node`},
		"a window over its interval":     {minimal + "collector: {batch_window: 1m}", `batch_window: is 1m, longer than changed_every (10s)`},
		"replicas of the embedded bus":   {minimal + "bus: {replicas: 3}", `bus.replicas: is 3, but the embedded server is alone`},
		"both buses":                     {minimal + "bus: {url: 'nats://x:4222', embedded: {dir: x}}", `bus.embedded: stands beside bus.url`},
		"credentials without url":        {minimal + "bus: {tls: {}}", `bus.tls: is for an external NATS cluster`},
		"an url of something else":       {minimal + "bus: {url: 'redis://x'}", `bus.url: "redis://x" is no address of a NATS server`},
		"an address without port":        {minimal + "api: {listen: localhost}", `api.listen: is "localhost", expected an address`},
		"a bad embedded address":         {minimal + "bus: {embedded: {listen: x}}", `bus.embedded.listen: is "x"`},
		"a sync that is neither":         {minimal + "bus: {embedded: {sync: sometimes}}", `expected "always" or a positive duration`},
		"a token file that is a folder":  {minimal + "api: {token_files: [.]}", `is a folder, expected a readable file`},
		"an inline secret":               {minimal + "api: {tokens: [x]}", `api.tokens: unknown key`},
		"a body limit of nothing":        {minimal + "api: {limits: {body_bytes: 1}}", `body_bytes: is 1, expected a single value, at least 1024`},
		"a missing variable":             {minimal + "telemetry: {log_level: '${env:NOT_SET_ANYWHERE_1}'}", `environment variable NOT_SET_ANYWHERE_1 is not set`},
		"an unknown kind of reference":   {minimal + "telemetry: {log_level: '${vault:x}'}", `is neither ${env:NAME} nor ${file:path}`},
		"an open reference":              {minimal + "telemetry: {log_level: '${env:x'}", `has no closing brace`},
		"a missing referenced file":      {minimal + "telemetry: {log_level: '${file:nope}'}", `read referenced file`},
		"a merge of nothing":             {minimal + "bus: {<<: 3}", `bus: << merges nothing`},
		"an alias of nothing":            {"clusters: *nowhere", `clusters`},
		"a key that resembles no other":  {minimal + "zzzzzzzz: 1", `c.yaml:5:1: zzzzzzzz: unknown key`},
		"a server url that has no host":  {strings.Replace(minimal, "pools", "server_url: 'https://'\n    pools", 1), `server_url: is "https://"`},
		"an empty server name, a list":   {strings.Replace(minimal, "pools", "server_url: [a]\n    pools", 1), `server_url: is a list, expected a text`},
		"a text of several lines as cpu": {pool("        cpu: |\n          lots\n"), `clusters[0].pools[0].cpu`},
		"a negative window":              {minimal + "collector: {batch_window: -1ms}", `batch_window: is "-1ms", expected 0 or a positive duration`},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Contains(t, strings.Join(all(t, c.text), "\n"), c.want)
		})
	}
}

func TestLimitsThatHoldAtDifferentTimesDoNotContradictEachOther(t *testing.T) {
	t.Parallel()
	require.Empty(t, all(t, `clusters:
  - name: home
    kubeconfig: in-cluster
    pools:
      - name: w
        provider: docker
        max: 3
        cpu: 1
        memory: 1Gi
        schedules:
          - {name: day, schedule: 0 8 * * *, duration: 12h, min: 5, max: 10}
          - {name: night, schedule: 0 20 * * *, duration: 12h, max: 1}
`))
}

func TestCredentialsInTheURLOfTheBusAreRefusedAndNotRepeated(t *testing.T) {
	t.Parallel()
	_, err := Parse("c.yaml", []byte(minimal+"bus: {url: 'nats://me:hidden@x:4222'}"), t.TempDir())
	var errs *Errors
	require.ErrorAs(t, err, &errs)
	require.Len(t, errs.Problems, 1)
	require.Equal(t, "holds credentials", errs.Problems[0].Message)
	require.NotContains(t, errs.Error()+errs.Problems[0].Value, "hidden")
	require.NotZero(t, errs.Problems[0].Line)
	require.Equal(t, "bus.url", errs.Event().Problems[0].Key)
	require.NoError(t, errs.Event().Validate())
}

func TestAFileThatCannotBeReadIsAProblemToo(t *testing.T) {
	t.Parallel()
	_, err := Load("testdata/missing.yaml")
	require.EqualError(t, err, "testdata/missing.yaml: can't be read: no such file or directory")
	_, err = Parse("c.yaml", make([]byte, maxFile+1), "")
	require.ErrorContains(t, err, "larger than 1 MiB")
}

func TestAliasesDoNotUnfoldWithoutEnd(t *testing.T) {
	t.Parallel()
	many := func(alias string) string { return strings.TrimSuffix(strings.Repeat("*"+alias+", ", 300), ", ") }
	text := "x: &t [" + strings.TrimSuffix(strings.Repeat("'a=b:NoSchedule', ", 300), ", ") + "]\n" +
		"y: &p {name: w, provider: simulated, max: 1, cpu: 1, memory: 1Gi, taints: *t}\n" +
		"z: &c {name: home, pools: [" + many("p") + "]}\n" +
		"clusters: [" + many("c") + "]\n"
	require.Contains(t, strings.Join(all(t, text), "\n"), "unfolds to more than 100,000 values")
	require.NotEmpty(t, all(t, "clusters: &a [*a]\n"), "an alias of itself ends")
	require.NotEmpty(t, all(t, "clusters: &a\n  - <<: *a\n"))
}

func TestActingNeedsCredentialsThatADryRunDoesNot(t *testing.T) {
	t.Parallel()
	c, err := Parse("c.yaml", []byte("clusters:\n  - name: home\n    kubeconfig: in-cluster\n    pools:\n      - {name: w, provider: docker, max: 3, cpu: 1, memory: 1Gi}\n"), t.TempDir())
	require.NoError(t, err, "enough for a dry run")
	var errs *Errors
	require.ErrorAs(t, c.CheckActing(), &errs)
	require.Len(t, errs.Problems, 3)
	require.Contains(t, errs.Error(), "c.yaml:2:5: clusters[0].actor_kubeconfig: is missing")
	require.Contains(t, errs.Error(), "clusters[0].token_file: is missing")
	require.Contains(t, errs.Error(), "or run with --dry-run")

	c, err = Parse("c.yaml", []byte(minimal), t.TempDir())
	require.NoError(t, err)
	require.NoError(t, c.CheckActing(), "the simulated provider needs nothing")
	require.EqualError(t, c.CheckRun(), `c.yaml:4:31: clusters[0].pools[0].provider: is "simulated", which exists in the demo only, expected docker; or run with --dry-run`)
}

func TestWarningsNameWhatDeservesASecondLook(t *testing.T) {
	t.Parallel()
	c, err := Parse("c.yaml", []byte(`clusters:
  - name: home
    kubeconfig: in-cluster
    pools:
      - {name: w, provider: docker, max: 0, cpu: 1, memory: 1Gi, labels: {node-role.kubernetes.io/worker: "", node.kubernetes.io/x: y, topology.kubernetes.io/zone: a, example.com/a: b, plain: c}, docker: {host: "tcp://x:2375"}}
bus: {embedded: {sync: 2m}}
api: {listen: ":8080"}
`), t.TempDir())
	require.NoError(t, err)
	var got []string
	for _, w := range c.Warnings() {
		got = append(got, w.Key)
	}
	require.ElementsMatch(t, []string{
		"api.token_files", "api.listen", "bus.embedded.sync", "clusters[0].pools[0].docker.host",
		"clusters[0].pools[0].max", "clusters[0].pools[0].labels.node-role.kubernetes.io/worker",
	}, got)

	c, err = Load("testdata/full.yaml")
	require.NoError(t, err)
	require.Empty(t, c.Warnings())
}
