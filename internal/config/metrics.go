package config

import (
	"cmp"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// Prometheus is a server that speaks the query API of Prometheus.
type Prometheus struct {
	URL          string          `yaml:"url" required:"true" doc:"Its address, e.g. http://prometheus:9090; a path in it stands before /api/v1/query."`
	TokenFile    string          `yaml:"token_file" path:"exists" doc:"File with a bearer token. Read again for every query."`
	Username     string          `yaml:"username" doc:"For basic authentication, with password_file."`
	PasswordFile string          `yaml:"password_file" path:"exists" doc:"File with the password. Read again for every query."`
	CAFile       string          `yaml:"ca_file" path:"exists" doc:"Certificate authority of an https address; the system's when absent."`
	Timeout      events.Duration `yaml:"timeout" default:"5s" doc:"For the answer to one query; then its metric is unknown."`
}

// MetricRule makes a number of nodes of a metric.
type MetricRule struct {
	Name    string `yaml:"name" required:"true" doc:"Name of the rule, as explanations show it."`
	Cluster string `yaml:"cluster" doc:"Only for this cluster; absent, for every cluster that has the pool."`
	Pool    string `yaml:"pool" required:"true" doc:"The pool that is scaled."`

	Metric string `yaml:"metric" enum:"cpu-requests,memory-requests,cpu-usage,memory-usage,pending-pods" doc:"A value that the cluster itself has. cpu-requests, memory-requests: requests of the pods on the pool's Ready nodes, cpu-usage, memory-usage: what metrics.k8s.io measures there, each as a share (0 to 1) of what is allocatable; unknown while the pool has no Ready node. pending-pods: pods that the scheduler finds no node for and a new node of the pool could take."`
	Signal string `yaml:"signal" doc:"A value that somebody pushes, by its name: 'k3s-autoscaler signal push', or POST /v1/signals."`
	Query  string `yaml:"query" doc:"A PromQL query, which clusters[].prometheus answers with a scalar or exactly one series. Anything else, NaN included, is unknown: aggregate, and write 'or vector(0)' where no series means zero."`

	Interval   events.Duration `yaml:"interval" default:"15s" doc:"Between two queries, at least 5s, or between two points of a metric."`
	StaleAfter events.Duration `yaml:"stale_after" doc:"A value older than this is unknown. Absent: four times the interval; five minutes for a signal."`

	ScaleUp   bool `yaml:"scale_up" default:"true" doc:"It may add nodes: at once, once in each scale_up.cooldown of the pool."`
	ScaleDown bool `yaml:"scale_down" default:"false" doc:"It may remove nodes, when all rules of the pool that may ask for fewer: those whose pods fit elsewhere, by the delays and limits of the pool's scale_down, without waiting for 'unneeded'. The highest number within scale_down.stabilization counts."`

	TargetValue *TargetValue `yaml:"target_value" doc:"Strategy: keep a metric that falls as nodes are added at a target, with ceil(nodes × metric / target) nodes."`
	Threshold   *Threshold   `yaml:"threshold" doc:"Strategy: add or remove nodes while enough of the last points lie within bounds."`
	PassThrough bool         `yaml:"pass_through" default:"false" doc:"Strategy: as many nodes as the metric says, rounded up."`
	Fixed       *int         `yaml:"fixed" min:"0" max:"10000" doc:"Strategy: so many nodes while the metric is known, whatever it says."`
}

// TargetValue keeps a metric at a target.
type TargetValue struct {
	Target   float64 `yaml:"target" required:"true" doc:"What the metric should be, above 0."`
	DeadBand float64 `yaml:"dead_band" default:"0.01" min:"0" max:"0.9" doc:"The share by which the metric may differ from the target without anything being done."`
}

// Threshold acts while enough points lie within bounds.
type Threshold struct {
	AtLeast *float64 `yaml:"at_least" doc:"A point within bounds is at least this; absent: any."`
	Below   *float64 `yaml:"below" doc:"A point within bounds is below this; absent: any."`
	Points  int      `yaml:"points" default:"5" min:"1" max:"100" doc:"How many points have to lie within bounds."`
	Of      int      `yaml:"of" default:"0" min:"0" max:"100" doc:"Of how many, the last ones; 0: as many as 'points'. After a gap longer than stale_after they are counted anew."`
	Delta   *int     `yaml:"delta" min:"-10000" max:"10000" doc:"Then so many nodes more, or fewer if below 0."`
	Percent *float64 `yaml:"percent" min:"-100" max:"1000" doc:"Then so many percent more of the nodes that there are, or fewer if below 0; at least one node."`
	Nodes   *int     `yaml:"nodes" min:"0" max:"10000" doc:"Then so many nodes in all."`
}

const (
	minQueryInterval = 5 * time.Second
	signalStaleAfter = 5 * time.Minute
)

// staleAfter fills in what depends on the interval.
func (r MetricRule) staleAfter() events.Duration {
	def := 4 * r.Interval
	if r.Signal != "" {
		def = events.Duration(signalStaleAfter)
	}
	return cmp.Or(r.StaleAfter, def)
}

func (r MetricRule) policy() events.MetricRule {
	out := events.MetricRule{Name: r.Name, Pool: r.Pool, Metric: r.Metric, Signal: r.Signal, Query: r.Query, Interval: r.Interval,
		StaleAfter: r.staleAfter(), MayAdd: r.ScaleUp, MayRemove: r.ScaleDown, PassThrough: r.PassThrough, Fixed: r.Fixed}
	if t := r.TargetValue; t != nil {
		out.TargetValue = &events.TargetValue{Target: t.Target, DeadBand: t.DeadBand}
	}
	if t := r.Threshold; t != nil {
		out.Threshold = &events.MetricThreshold{AtLeast: t.AtLeast, Below: t.Below, Points: t.Points, Of: cmp.Or(t.Of, t.Points),
			Delta: t.Delta, Percent: t.Percent, Nodes: t.Nodes}
	}
	return out
}

// Signals are the names of the signals that rules of the cluster look at.
func (c *Config) Signals(cluster string) []string {
	var out []string
	for _, r := range c.Policy(cluster).MetricRules {
		if r.Signal != "" {
			out = append(out, r.Signal)
		}
	}
	return out
}

func (d *decoder) checkPrometheus(at string, p *Prometheus) {
	if p == nil {
		return
	}
	u, err := url.Parse(p.URL)
	if p.URL != "" && (err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.RawQuery != "" || u.Fragment != "") {
		d.fail(at+".url", fmt.Sprintf("is %q", d.raw[at+".url"]), "a URL such as http://prometheus:9090")
	} else if err == nil && u.User != nil {
		d.fail(at+".url", "holds a user, whose password everyone would see who reads the file", "username and password_file")
	}
	switch {
	case (p.Username == "") != (p.PasswordFile == ""):
		d.fail(d.given(at+".username", at+".password_file"), "stands alone", "username and password_file together")
	case p.TokenFile != "" && p.Username != "":
		d.fail(at+".token_file", "stands beside username", "token_file, or username and password_file")
	}
	if p.CAFile != "" && err == nil && u.Scheme == "http" {
		d.fail(at+".ca_file", "is for an https address, and url is one of http", "an https address, or no ca_file")
	}
}

// unencrypted reports whether a secret would travel to another machine in the clear.
func (p *Prometheus) unencrypted() bool {
	if p == nil || p.TokenFile == "" && p.PasswordFile == "" {
		return false
	}
	u, err := url.Parse(p.URL)
	return err == nil && u.Scheme == "http" && !loopback(u.Hostname())
}

func (d *decoder) checkMetricRules(c *Config) {
	seen := map[string]bool{}
	for i, r := range c.Decision.MetricRules {
		at := fmt.Sprintf("policy.metric_rules[%d]", i)
		d.checkTwice(seen, at+".name", r.Name, "rule")
		if r.Name != "" && events.ValidateSignal(r.Name) != nil {
			d.fail(at+".name", fmt.Sprintf("is %q", r.Name), fmt.Sprintf("letters, digits and any of _.:/-, at most %d of them", events.MaxSignalName))
		}
		d.checkRulePool(c, at, r.Cluster, r.Pool)
		d.checkSource(c, at, r)
		d.checkStrategy(at, r)
		if !r.ScaleUp && !r.ScaleDown {
			d.fail(d.given(at+".scale_up", at), "may neither add nor remove nodes", "scale_up or scale_down")
		}
	}
}

// checkSource wants exactly one source, and times that make sense with it.
func (d *decoder) checkSource(c *Config, at string, r MetricRule) {
	switch given := set(map[string]bool{"metric": r.Metric != "", "signal": r.Signal != "", "query": r.Query != ""}); {
	case len(given) == 0:
		d.fail(at, "has no source", "one of metric, signal and query")
		return
	case len(given) > 1:
		d.fail(at+"."+given[1], "stands beside "+given[0], "one of metric, signal and query")
		return
	}
	switch {
	case r.Signal != "":
		if events.ValidateSignal(r.Signal) != nil {
			d.fail(at+".signal", fmt.Sprintf("is %q", r.Signal), fmt.Sprintf("letters, digits and any of _.:/-, at most %d of them", events.MaxSignalName))
		}
		if d.has(at + ".interval") {
			d.fail(at+".interval", "is for a query or a metric; a signal comes when somebody pushes it", "stale_after alone")
		}
		return
	case r.Query != "":
		if r.Interval > 0 && r.Interval.Std() < minQueryInterval {
			d.fail(at+".interval", fmt.Sprintf("is %s", r.Interval), fmt.Sprintf("at least %s for a query", minQueryInterval))
			return
		}
		for _, cl := range c.Clusters {
			if _, has := cl.Pool(r.Pool); !has || r.Cluster != "" && r.Cluster != cl.Name {
				continue
			}
			if cl.Prometheus == nil {
				d.fail(at+".query", fmt.Sprintf("cluster %s has no Prometheus to answer it", cl.Name), "clusters[].prometheus, or a cluster in the rule that has one")
			} else if cl.Prometheus.Timeout >= r.Interval && r.Interval > 0 {
				d.fail(d.given(at+".interval", at+".query"), fmt.Sprintf("interval is %s, not longer than the timeout of the Prometheus of cluster %s (%s)",
					r.Interval, cl.Name, cl.Prometheus.Timeout), "an interval longer than prometheus.timeout")
			}
		}
	}
	if r.StaleAfter > 0 && r.StaleAfter < 2*r.Interval {
		d.fail(at+".stale_after", fmt.Sprintf("is %s, less than two intervals (%s)", r.StaleAfter, r.Interval), "at least twice the interval, so that one lost value is no gap")
	}
}

// checkStrategy wants exactly one strategy that can act.
func (d *decoder) checkStrategy(at string, r MetricRule) {
	given := set(map[string]bool{"target_value": r.TargetValue != nil, "threshold": r.Threshold != nil, "pass_through": r.PassThrough, "fixed": r.Fixed != nil})
	switch {
	case len(given) == 0:
		d.fail(at, "has no strategy", "one of target_value, threshold, pass_through and fixed")
		return
	case len(given) > 1:
		d.fail(at+"."+given[1], "stands beside "+given[0], "one strategy")
		return
	}
	if key := at + ".target_value.target"; r.TargetValue != nil && r.TargetValue.Target <= 0 && d.has(key) {
		// What is no number at all has been reported.
		if v, err := strconv.ParseFloat(d.raw[key], 64); err == nil && v <= 0 || hasReference(d.raw[key]) {
			d.fail(key, "is "+d.raw[key], "a number above 0")
		}
	}
	if t := r.Threshold; t != nil {
		d.checkThreshold(at, r, *t)
	}
}

func (d *decoder) checkThreshold(at string, r MetricRule, t Threshold) {
	key := at + ".threshold"
	switch {
	case t.AtLeast == nil && t.Below == nil:
		d.fail(key, "has no bound", "at_least, below, or both")
	case t.AtLeast != nil && t.Below != nil && *t.AtLeast >= *t.Below:
		d.fail(key+".at_least", fmt.Sprintf("at_least is %g, not smaller than below (%g): no point lies within", *t.AtLeast, *t.Below), "at_least smaller than below")
	}
	if t.Of > 0 && t.Of < t.Points {
		d.fail(key+".of", fmt.Sprintf("is %d, smaller than points (%d)", t.Of, t.Points), "at least as many as points")
	}
	given := set(map[string]bool{"delta": t.Delta != nil, "percent": t.Percent != nil, "nodes": t.Nodes != nil})
	if len(given) != 1 {
		what := "says nothing about nodes"
		if len(given) > 1 {
			what = "says several things: " + strings.Join(given, ", ")
		}
		d.fail(key, what, "one of delta, percent and nodes")
		return
	}
	change := 0.0
	switch {
	case t.Delta != nil:
		change = float64(*t.Delta)
	case t.Percent != nil:
		change = *t.Percent
	default:
		return
	}
	field := key + "." + given[0]
	switch {
	case change == 0:
		d.fail(field, "is 0, which does nothing", "a number above or below 0")
	case change > 0 && !r.ScaleUp:
		d.fail(field, fmt.Sprintf("is %s, and the rule may not add nodes", d.raw[field]), "scale_up: true, or a number below 0")
	case change < 0 && !r.ScaleDown:
		d.fail(field, fmt.Sprintf("is %s, and the rule may not remove nodes", d.raw[field]), "scale_down: true, or a number above 0")
	}
}

// set are the keys that have a value, by name.
func set(has map[string]bool) []string {
	maps.DeleteFunc(has, func(_ string, is bool) bool { return !is })
	return slices.Sorted(maps.Keys(has))
}
