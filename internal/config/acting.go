package config

import (
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
)

// CheckActing finds what a process lacks that is to act: a dry run needs no
// credentials, everything else does. The error is an *Errors.
func (c *Config) CheckActing() error {
	var ps problems
	c.checkActing(&ps)
	return ps.err()
}

// CheckRun is CheckActing for the real world, where no machine is simulated: a
// simulated pool needs somebody who brings the simulation, as the demo does.
func (c *Config) CheckRun() error {
	var ps problems
	c.checkActing(&ps)
	for i, cl := range c.Clusters {
		for j, p := range cl.Pools {
			if p.Provider == ProviderSimulated {
				ps.add(c.src.problem(fmt.Sprintf("clusters[%d].pools[%d].provider", i, j),
					fmt.Sprintf("is %q, which exists in the demo only", p.Provider), ProviderDocker+"; or run with --dry-run"))
			}
		}
	}
	return ps.err()
}

func (c *Config) checkActing(ps *problems) {
	for i, cl := range c.Clusters {
		at := fmt.Sprintf("clusters[%d]", i)
		need := func(key, value, expected string) {
			if value == "" {
				ps.add(c.src.problem(at+"."+key, "is missing", expected+"; or run with --dry-run"))
			}
		}
		// Nodes of other providers know by themselves how to join.
		if slices.ContainsFunc(cl.Pools, func(p Pool) bool { return p.Provider != ProviderSimulated }) {
			need("actor_kubeconfig", cl.ActorKubeconfig, "a kubeconfig that may cordon, evict and delete nodes")
		}
		if slices.ContainsFunc(cl.Pools, func(p Pool) bool { return p.Provider == ProviderDocker }) {
			need("server_url", cl.ServerURL, "the URL at which new agents find the server, e.g. https://k3s:6443")
			need("token_file", cl.TokenFile, "the file with the token that agents join with")
		}
	}
}

// Warnings are things that work but deserve a second look.
func (c *Config) Warnings() []Problem {
	var ps problems
	warn := func(key, message string) { ps.add(c.src.problem(key, message, "")) }
	if len(c.API.TokenFiles) == 0 {
		warn("api.token_files", "names no file, so every call is refused; make one with 'k3s-autoscaler key new'")
	}
	if host, _, err := net.SplitHostPort(c.API.Listen); err == nil && c.API.TLS == nil && !loopback(host) {
		warn("api.listen", fmt.Sprintf("tokens travel unencrypted on %s; set api.tls or put a proxy with TLS in front", c.API.Listen))
	}
	if c.Bus.URL == "" && c.Bus.Embedded.Sync != SyncAlways {
		warn("bus.embedded.sync", fmt.Sprintf("acknowledged events of the last %s can be lost when the power fails", c.Bus.Embedded.Sync))
	}
	if e := c.Bus.Embedded; e.Listen != "" && e.TLS == nil {
		if host, _, err := net.SplitHostPort(e.Listen); err == nil && host != "" && !loopback(host) {
			warn("bus.embedded.listen", fmt.Sprintf("the token and every event travel unencrypted on %s; set bus.embedded.tls", e.Listen))
		}
	}
	for _, u := range c.Bus.Servers() {
		x, err := url.Parse(u)
		secret := c.Bus.TokenFile != "" || c.Bus.User != ""
		if err == nil && secret && c.Bus.TLS == nil && (x.Scheme == "nats" || x.Scheme == "ws") && !loopback(x.Hostname()) {
			warn("bus.url", fmt.Sprintf("the secret that logs in to %s travels unencrypted; use tls:// or set bus.tls", x.Host))
			break
		}
	}
	for i, cl := range c.Clusters {
		if cl.Prometheus.unencrypted() {
			warn(fmt.Sprintf("clusters[%d].prometheus.url", i), "the secret that logs in there travels unencrypted; use https")
		}
		for j, p := range cl.Pools {
			at := fmt.Sprintf("clusters[%d].pools[%d]", i, j)
			for k := range p.Labels {
				if refusedByKubelet(k) {
					warn(at+".labels."+k, "a kubelet may not set this label on its own node; agents with it will not register")
				}
			}
			if p.Docker != nil {
				for k, h := range p.Docker.Engines() {
					key := at + ".docker.host"
					if h.Name != "" {
						key = fmt.Sprintf("%s.docker.hosts[%d].host", at, k)
					}
					if strings.HasPrefix(h.Host, "tcp://") && h.TLS == nil {
						warn(key, "whoever reaches this port is root on that host; use tls, or ssh://")
					}
				}
			}
			if g := p.ExternalGRPC; g != nil && g.TLS == nil {
				if host, _, err := net.SplitHostPort(g.Address); err == nil && !loopback(host) {
					warn(at+".externalgrpc.address", "whoever reaches this port makes and deletes nodes, and what is said travels unencrypted; use tls")
				}
			}
			if after := p.ScaleUp.ReplaceUnreadyAfter; p.Repair.Enabled && after >= p.Repair.After {
				warn(at+".scale_up.replace_unready_after", fmt.Sprintf("is %s and never comes to count: a node that is not Ready is removed after %s (repair.after)", after, p.Repair.After))
			}
			if p.Max == 0 {
				warn(at+".max", "is 0: the pool never gets a node")
			}
		}
	}
	if err, ok := ps.err().(*Errors); ok { //nolint:errorlint // our own, never wrapped
		return err.Problems
	}
	return nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || (ip != nil && ip.IsLoopback())
}

// refusedByKubelet follows the kubelet's own rule for --node-labels: keys
// under kubernetes.io and k8s.io are refused, except the prefixes kubelet. and
// node. and a short list.
func refusedByKubelet(key string) bool {
	prefix, _, ok := strings.Cut(key, "/")
	if !ok {
		return false
	}
	in := func(domain string) bool { return prefix == domain || strings.HasSuffix(prefix, "."+domain) }
	if !in("kubernetes.io") && !in("k8s.io") {
		return false
	}
	if in("kubelet.kubernetes.io") || in("node.kubernetes.io") {
		return false
	}
	switch key {
	case "kubernetes.io/hostname", "kubernetes.io/arch", "kubernetes.io/os",
		"beta.kubernetes.io/instance-type", "beta.kubernetes.io/os", "beta.kubernetes.io/arch",
		"failure-domain.beta.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/region",
		"topology.kubernetes.io/zone", "topology.kubernetes.io/region":
		return false
	}
	return true
}
