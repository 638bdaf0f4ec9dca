package config

import (
	"fmt"
	"slices"
	"time"
)

// maxExternalTimeout keeps one call within the minute that a step of a node's life
// may take.
const maxExternalTimeout = time.Minute

// checkExternalGRPC checks the settings of the externalgrpc provider.
func (d *decoder) checkExternalGRPC(at string, p Pool) {
	key, g := at+".externalgrpc", p.ExternalGRPC
	switch {
	case p.Provider != ProviderExternalGRPC && g == nil:
		return
	case p.Provider != ProviderExternalGRPC:
		d.fail(key, fmt.Sprintf("settings of externalgrpc in a pool of provider %q", p.Provider), "provider: externalgrpc")
		return
	case g == nil:
		d.fail(at+".provider", "is externalgrpc, and there is no block 'externalgrpc'", "its address and node_group")
		return
	}
	if g.Address != "" {
		d.checkAddress(key+".address", g.Address)
	}
	if g.Timeout.Std() > maxExternalTimeout {
		d.fail(key+".timeout", fmt.Sprintf("is %s", g.Timeout), fmt.Sprintf("at most %s", maxExternalTimeout))
	}
	if g.TLS != nil && (g.TLS.CertFile == "") != (g.TLS.KeyFile == "") {
		d.fail(key+".tls", "has a certificate or a key alone", "cert_file and key_file, or none of them")
	}
}

// checkNodeGroups wants every node group in one pool: two that raise the size of
// one group would take each other's nodes.
func (d *decoder) checkNodeGroups(at string, cl Cluster) {
	for i, p := range cl.Pools {
		if p.ExternalGRPC == nil || p.ExternalGRPC.NodeGroup == "" {
			continue
		}
		j := slices.IndexFunc(cl.Pools[:i], func(o Pool) bool {
			return o.ExternalGRPC != nil && o.ExternalGRPC.NodeGroup == p.ExternalGRPC.NodeGroup
		})
		if j >= 0 {
			d.fail(fmt.Sprintf("%s.pools[%d].externalgrpc.node_group", at, i),
				fmt.Sprintf("is %q, which pool %s has", p.ExternalGRPC.NodeGroup, cl.Pools[j].Name), "a node group of its own for each pool, by its id")
		}
	}
}
