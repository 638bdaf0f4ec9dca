package config

import (
	"fmt"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
)

// DefaultDockerHost is the engine of a pool that names none.
const DefaultDockerHost = "unix:///var/run/docker.sock"

// Engines are the hosts of the pool, whichever form they were written in. The
// one of the short form has no name.
func (k Docker) Engines() []DockerHost {
	if len(k.Hosts) > 0 {
		return k.Hosts
	}
	h := DockerHost{Host: k.Host, TLS: k.TLS, SSH: k.SSH}
	if h.Host == "" {
		h.Host = DefaultDockerHost
	}
	return []DockerHost{h}
}

// checkDockerHosts looks at how the engines of a pool are reached.
func (d *decoder) checkDockerHosts(at string, k Docker) {
	if d.has(at + ".hosts") {
		for _, short := range []string{".host", ".tls", ".ssh"} {
			if d.has(at + short) {
				d.fail(at+short, "stands beside hosts", "host for one engine, or hosts for any number")
			}
		}
		if len(k.Hosts) == 0 {
			d.fail(at+".hosts", "is an empty list", "at least one host")
		}
	} else if k.Host != "" {
		d.checkDockerHost(at, DockerHost{Host: k.Host, TLS: k.TLS, SSH: k.SSH})
	}
	names, addresses := map[string]bool{}, map[string]bool{}
	for i, h := range k.Hosts {
		key := fmt.Sprintf("%s.hosts[%d]", at, i)
		d.checkTwice(names, key+".name", h.Name, "host")
		d.checkTwice(addresses, key+".host", h.Host, "engine")
		if errs := validation.IsDNS1123Label(h.Name); h.Name != "" && len(errs) > 0 {
			d.fail(key+".name", fmt.Sprintf("is %q", h.Name), "a DNS label (lower-case letters, digits and '-', at most 63 characters)")
		}
		d.checkDockerHost(key, h)
	}
	d.checkGPUs(at+".gpus", k.GPUs)
}

func (d *decoder) checkDockerHost(at string, h DockerHost) {
	if h.Host == "" { // has been reported
		return
	}
	u, err := url.Parse(h.Host)
	ok := err == nil
	if ok {
		switch u.Scheme {
		case "unix", "npipe":
			ok = u.User == nil && u.Path != ""
		case "tcp":
			ok = u.User == nil && u.Host != ""
		case "ssh":
			_, password := u.User.Password()
			ok = u.Hostname() != "" && u.User.Username() != "" && !password && u.RawQuery == "" && u.Fragment == ""
		default:
			ok = false
		}
	}
	if !ok {
		d.fail(at+".host", fmt.Sprintf("is %q", d.raw[at+".host"]), "unix:///var/run/docker.sock, tcp://host:2376 or ssh://user@host")
		return
	}
	if h.SSH == nil && u.Scheme == "ssh" {
		d.fail(at+".host", "has no ssh beside it", "ssh: {key_file: …, known_hosts_file: …}")
	}
	if h.SSH != nil && u.Scheme != "ssh" {
		d.fail(at+".ssh", fmt.Sprintf("is for ssh://, the host is %q", h.Host), "")
	}
	if h.TLS != nil && u.Scheme != "tcp" {
		d.fail(at+".tls", fmt.Sprintf("is for tcp://, the host is %q", h.Host), "")
	}
}

// checkGPUs wants what docker run --gpus takes.
func (d *decoder) checkGPUs(key, gpus string) {
	if gpus == "" || gpus == "all" {
		return
	}
	if ids, ok := strings.CutPrefix(gpus, "device="); ok && !slices.Contains(strings.Split(ids, ","), "") {
		return
	}
	if n, err := strconv.Atoi(gpus); err == nil && n > 0 {
		return
	}
	d.fail(key, fmt.Sprintf("is %q", gpus), "all, a number above 0, or device=ID,ID")
}

// checkEngines wants one name for one engine, and one engine for one name, in the
// whole file: metrics and limits go by the name. How many nodes of a pool a host
// takes is the pool's own affair.
func (d *decoder) checkEngines(c *Config) {
	type place struct {
		key  string
		host DockerHost
	}
	byName, byAddress := map[string]place{}, map[string]place{}
	for i, cl := range c.Clusters {
		for j, p := range cl.Pools {
			if p.Docker == nil {
				continue
			}
			for k, h := range p.Docker.Hosts {
				key := fmt.Sprintf("clusters[%d].pools[%d].docker.hosts[%d]", i, j, k)
				h.MaxNodes = 0
				if first, ok := byName[h.Name]; !ok {
					byName[h.Name] = place{key, h}
				} else if !reflect.DeepEqual(first.host, h) {
					d.fail(key+".name", fmt.Sprintf("host %q has other settings in %s", h.Name, first.key), "the same settings but max_nodes, e.g. by a YAML anchor, or another name")
				}
				if first, ok := byAddress[h.Host]; !ok {
					byAddress[h.Host] = place{key, h}
				} else if first.host.Name != h.Name {
					d.fail(key+".host", fmt.Sprintf("is named %q in %s", first.host.Name, first.key), "one name for one engine")
				}
			}
		}
	}
}
