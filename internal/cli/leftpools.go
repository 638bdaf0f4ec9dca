package cli

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/api"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/config"
)

// leftPools warns of pools that have nodes and that a configuration does not have.
func (a *app) leftPools(ctx context.Context, cfg *config.Config) error {
	cl, err := a.connect()
	if err != nil {
		return err
	}
	var page api.Page[api.Node]
	if err := cl.get(ctx, "/v1/nodes", query("ours", "true"), &page); err != nil {
		return err
	}
	type left struct{ cluster, pool string }
	nodes := map[left][]string{}
	for _, n := range page.Items {
		gone := n.Ready == "" && (n.Phase == "removed" || n.Phase == "failed" || n.Phase == "lost")
		if n.Pool != "" && !gone && !configured(cfg, n.Cluster, n.Pool) {
			nodes[left{n.Cluster, n.Pool}] = append(nodes[left{n.Cluster, n.Pool}], n.Name)
		}
	}
	for _, l := range slices.SortedFunc(maps.Keys(nodes), func(a, b left) int { return slices.Compare([]string{a.cluster, a.pool}, []string{b.cluster, b.pool}) }) {
		names := nodes[l]
		slices.Sort(names)
		fmt.Fprintf(a.Stderr, "warning: pool %s of cluster %s has %s (%s) and is not in the file: they would stay as mere capacity, which nothing removes, replaces or cleans up; "+
			"let a pool take them over by renamed_from: [%s], or set its min to 0 and let them go first: k3s-autoscaler scale to --pool %s --count 0\n",
			l.pool, l.cluster, plural(len(names), "node"), some(names, len(names)), l.pool, l.pool)
	}
	return nil
}

func configured(cfg *config.Config, cluster, pool string) bool {
	for _, c := range cfg.Clusters {
		if c.Name == cluster {
			return slices.ContainsFunc(c.Pools, func(p config.Pool) bool { return p.Name == pool || slices.Contains(p.RenamedFrom, pool) })
		}
	}
	return false
}
