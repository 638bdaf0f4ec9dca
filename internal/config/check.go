package config

import (
	"cmp"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/scaling"
)

// labelPrefix is ours alone.
const labelPrefix = "k3s-autoscaler.dev/"

// fillProviders gives a pool the defaults of its provider's block when the
// file has none.
func (d *decoder) fillProviders(c *Config) {
	for i := range c.Clusters {
		for j := range c.Clusters[i].Pools {
			p := &c.Clusters[i].Pools[j]
			if p.Provider == ProviderDocker && p.Docker == nil {
				p.Docker = &Docker{}
				d.structure(nil, reflect.ValueOf(p.Docker).Elem(), fmt.Sprintf("clusters[%d].pools[%d].docker", i, j))
			}
		}
	}
}

// check finds what no single value shows.
func (d *decoder) check(c *Config) {
	seen := map[string]bool{}
	for i, cl := range c.Clusters {
		at := fmt.Sprintf("clusters[%d]", i)
		d.checkName(at+".name", cl.Name, events.ValidateCluster(cl.Name), "a DNS label (lower-case letters, digits and '-', at most 63 characters)")
		d.checkTwice(seen, at+".name", cl.Name, "cluster")
		d.checkCluster(at, cl)
	}
	d.checkEngines(c)
	d.checkPolicy(c)
	if def := c.Alerting.DefaultCluster; def != "" {
		d.checkKnown("alerting.default_cluster", "cluster", def, clusterNames(c))
	} else if len(c.Clusters) == 1 {
		c.Alerting.DefaultCluster = c.Clusters[0].Name
	}
	if c.Collector.BatchWindow > c.Collector.ChangedEvery {
		d.fail("collector.batch_window", fmt.Sprintf("is %s, longer than changed_every (%s)", c.Collector.BatchWindow, c.Collector.ChangedEvery), "")
	}
	d.checkBus(c.Bus)
	d.checkAddress("api.listen", c.API.Listen)
}

func (d *decoder) checkName(key, name string, err error, expected string) {
	if name != "" && err != nil {
		d.fail(key, fmt.Sprintf("is %q", name), expected)
	}
}

func (d *decoder) checkTwice(seen map[string]bool, key, name, what string) {
	if name == "" {
		return
	}
	if seen[name] {
		d.fail(key, fmt.Sprintf("%s %q stands here twice", what, name), "a name of its own for each")
	}
	seen[name] = true
}

func (d *decoder) checkKnown(key, what, name string, known []string) {
	if slices.Contains(known, name) {
		return
	}
	set := map[string]reflect.StructTag{}
	for _, k := range known {
		set[k] = ""
	}
	d.fail(key, fmt.Sprintf("there is no %s %q", what, name)+didYouMean(name, set), "one of "+strings.Join(known, ", "))
}

func clusterNames(c *Config) []string {
	var out []string
	for _, cl := range c.Clusters {
		out = append(out, cl.Name)
	}
	return out
}

func (d *decoder) checkCluster(at string, cl Cluster) {
	if cl.Kubeconfig == "" && slices.ContainsFunc(cl.Pools, func(p Pool) bool { return p.Provider != ProviderSimulated }) {
		d.fail(at+".kubeconfig", "is missing", "a kubeconfig that may read the cluster, or 'in-cluster'")
	}
	if u, err := url.Parse(cl.ServerURL); cl.ServerURL != "" && (err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil) {
		d.fail(at+".server_url", fmt.Sprintf("is %q", d.raw[at+".server_url"]), "a URL such as https://k3s:6443")
	}
	d.checkPrometheus(at+".prometheus", cl.Prometheus)
	seen := map[string]bool{}
	for i, p := range cl.Pools {
		pool := fmt.Sprintf("%s.pools[%d]", at, i)
		d.checkName(pool+".name", p.Name, events.ValidatePool(p.Name),
			fmt.Sprintf("a DNS label of at most %d characters: nodes are named <pool>-<10 characters> and must fit 63", events.MaxPoolName))
		d.checkTwice(seen, pool+".name", p.Name, "pool")
		d.checkPool(pool, p)
	}
	d.checkNodeGroups(at, cl)
	for i, p := range cl.Pools {
		for j, old := range p.RenamedFrom {
			key := fmt.Sprintf("%s.pools[%d].renamed_from[%d]", at, i, j)
			d.checkName(key, old, events.ValidatePool(old), "a name that the pool had")
			if slices.ContainsFunc(cl.Pools, func(o Pool) bool { return o.Name == old }) {
				d.fail(key, fmt.Sprintf("is %q, which is a pool of this file", old), "a name that no pool has any more")
				continue
			}
			d.checkTwice(seen, key, old, "former name")
		}
	}
}

func (d *decoder) checkPool(at string, p Pool) {
	if p.Min > p.Max && p.Max >= 0 && d.has(at+".max") {
		d.fail(d.given(at+".min", at+".max"), fmt.Sprintf("min is %d, larger than max (%d)", p.Min, p.Max), "min at most max")
	}
	for k, v := range p.Labels {
		key := join(at+".labels", k)
		if errs := validation.IsQualifiedName(k); len(errs) > 0 {
			d.fail(key, "is no label key: "+errs[0], "")
		}
		if errs := validation.IsValidLabelValue(v); len(errs) > 0 {
			d.fail(key, fmt.Sprintf("%q is no label value: %s", v, errs[0]), "")
		}
		if strings.HasPrefix(k, labelPrefix) {
			d.fail(key, "the label is set by k3s-autoscaler itself", "a label of your own")
		}
	}
	d.checkTaints(at, p)
	if p.Backoff.Initial > p.Backoff.Max {
		d.fail(d.given(at+".backoff.initial", at+".backoff.max"), fmt.Sprintf("initial is %s, longer than max (%s)", p.Backoff.Initial, p.Backoff.Max), "initial at most max")
	}
	if p.ScaleDown.Jobs == JobsFinish && p.ScaleDown.JobsDeadline <= 0 {
		d.fail(d.given(at+".scale_down.jobs_deadline", at+".scale_down.jobs"), fmt.Sprintf("is %s", p.ScaleDown.JobsDeadline), "how long pods of Jobs may go on, such as 1h, or jobs: evict")
	}
	d.checkHeadroom(at+".headroom", p, p.Headroom)
	d.checkSchedules(at+".schedules", at, p)
	for i, b := range p.ScaleDown.Budgets {
		d.checkBudget(fmt.Sprintf("%s.scale_down.budgets[%d]", at, i), b)
	}
	d.checkExternalGRPC(at, p)
	if p.Docker == nil {
		return
	}
	if p.Provider != ProviderDocker {
		d.fail(at+".docker", fmt.Sprintf("settings of docker in a pool of provider %q", p.Provider), "provider: docker")
		return
	}
	d.checkDocker(at+".docker", *p.Docker)
}

// checkBudget wants what the core understands: to it, anything else is a budget of
// no nodes.
func (d *decoder) checkBudget(at string, b RemovalBudget) {
	field, err := scaling.RemovalBudget{Nodes: b.Nodes, Window: scaling.Window{Schedule: b.Schedule, Duration: b.Duration.Std(), Timezone: b.Timezone}}.Check()
	if err == nil {
		return
	}
	d.fail(d.given(at+"."+field, at), err.Error(), expectedOfWindow[field])
}

// checkTaints looks for startup taints that no node could shed: a taint is known
// by its key and effect.
func (d *decoder) checkTaints(at string, p Pool) {
	same := func(t Taint) func(Taint) bool {
		return func(o Taint) bool { return o.Key == t.Key && o.Effect == t.Effect }
	}
	for i, t := range p.StartupTaints {
		key := fmt.Sprintf("%s.startup_taints[%d]", at, i)
		text, _ := t.MarshalText()
		switch {
		case t.Key == "": // has been reported
		case t.Effect == "PreferNoSchedule":
			d.fail(key, fmt.Sprintf("is %q, which keeps no pod off the node", text), "the effect NoSchedule or NoExecute")
		case slices.ContainsFunc(p.Taints, same(t)):
			d.fail(key, fmt.Sprintf("is %q, whose key and effect stand in taints, too", text), "a taint in one of both: in taints if the node keeps it")
		case slices.ContainsFunc(p.StartupTaints[:i], same(t)):
			d.fail(key, fmt.Sprintf("is %q, whose key and effect stand here twice", text), "each key and effect once")
		}
	}
}

func (d *decoder) checkDocker(at string, k Docker) {
	d.checkDockerHosts(at, k)
	for i, m := range k.Mounts {
		parts := strings.Split(m, ":")
		bad := len(parts) < 2 || len(parts) > 3 || !filepath.IsAbs(parts[0]) || !filepath.IsAbs(parts[1]) ||
			(len(parts) == 3 && parts[2] != "ro" && parts[2] != "rw")
		if bad {
			d.fail(fmt.Sprintf("%s.mounts[%d]", at, i), fmt.Sprintf("is %q", m), "/host/path:/path or /host/path:/path:ro")
		}
	}
	for i, a := range k.ExtraArgs {
		name, _, _ := strings.Cut(strings.TrimLeft(a, "-"), "=")
		if name == "token" || name == "t" || name == "agent-token" {
			d.fail(fmt.Sprintf("%s.extra_args[%d]", at, i), "holds the join token, which everyone who may inspect the container would see", "clusters[].token_file")
		}
	}
	for k := range k.Env {
		if k == "K3S_TOKEN" || k == "K3S_AGENT_TOKEN" {
			d.fail(join(at+".env", k), "holds the join token, which everyone who may inspect the container would see", "clusters[].token_file")
		}
	}
}

func (d *decoder) checkPolicy(c *Config) {
	seen := map[string]bool{}
	for i, r := range c.Decision.AlertRules {
		at := fmt.Sprintf("policy.alert_rules[%d]", i)
		d.checkTwice(seen, at+".name", r.Name, "rule")
		d.checkRulePool(c, at, r.Cluster, r.Pool)
	}
	d.checkMetricRules(c)
	d.checkPoolChoice(c)
	for i, n := range c.Decision.ProtectedNodes {
		_, err := events.EncodeKey(n)
		d.checkName(fmt.Sprintf("policy.protected_nodes[%d]", i), cmp.Or(n, " "), err, "the name of a node")
	}
}

// checkRulePool wants the cluster of a rule, if it names one, and its pool to exist.
func (d *decoder) checkRulePool(c *Config, at, cluster, pool string) {
	clusters := c.Clusters
	if cluster != "" {
		d.checkKnown(at+".cluster", "cluster", cluster, clusterNames(c))
		clusters = slices.DeleteFunc(slices.Clone(clusters), func(cl Cluster) bool { return cl.Name != cluster })
	}
	var pools []string
	for _, cl := range clusters {
		for _, p := range cl.Pools {
			if !slices.Contains(pools, p.Name) {
				pools = append(pools, p.Name)
			}
		}
	}
	if pool != "" && len(pools) > 0 {
		d.checkKnown(at+".pool", "pool", pool, pools)
	}
}

// checkPoolChoice wants every way of choosing once, and the prices that one of
// them compares: an absent price would be the lowest.
func (d *decoder) checkPoolChoice(c *Config) {
	seen := map[string]bool{}
	for i, name := range c.Decision.PoolChoice {
		d.checkTwice(seen, fmt.Sprintf("policy.pool_choice[%d]", i), name, "choice")
	}
	if !seen["price"] {
		return
	}
	for i, cl := range c.Clusters {
		for j := range cl.Pools {
			if key := fmt.Sprintf("clusters[%d].pools[%d].price", i, j); !d.has(key) {
				d.fail(key, "is missing", "what a node of the pool costs an hour, because policy.pool_choice has price")
			}
		}
	}
}

func (d *decoder) checkAddress(key, addr string) {
	if _, port, err := net.SplitHostPort(addr); err != nil || port == "" {
		d.fail(key, fmt.Sprintf("is %q", addr), "an address such as 127.0.0.1:8080 or :8080")
	}
}

// has reports whether the file has the key.
func (s *source) has(key string) bool { _, ok := s.where[key]; return ok }

// given is the first of the keys that the file has.
func (s *source) given(keys ...string) string {
	for _, k := range keys {
		if s.has(k) {
			return k
		}
	}
	return keys[0]
}
