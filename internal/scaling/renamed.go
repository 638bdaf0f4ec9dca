package scaling

import "slices"

// renamed are the former names of pools, and the pools that bear them no longer. A
// name that a pool has now is none.
func (p Policy) renamed() map[string]string {
	var out map[string]string
	pools := p.pools()
	for _, pool := range pools {
		for _, old := range pool.RenamedFrom {
			if slices.ContainsFunc(pools, func(o Pool) bool { return o.Name == old }) {
				continue
			}
			if _, taken := out[old]; taken { // the configuration refuses it
				continue
			}
			if out == nil {
				out = map[string]string{}
			}
			out[old] = pool.Name
		}
	}
	return out
}

// PoolOf is the pool that a name in a record or label means: the pool itself, or the
// one that bore the name.
func (p Policy) PoolOf(name string) string { return present(p.renamed(), name) }

func present(renamed map[string]string, name string) string {
	if now, ok := renamed[name]; ok {
		return now
	}
	return name
}

// rename has what is remembered of a pool's former name go on under its present one:
// what is on its way, what people asked for, and the rest unless the present name has
// memories of its own.
func (s *State) rename(renamed map[string]string) {
	if len(renamed) == 0 {
		return
	}
	for name, c := range s.Claims {
		c.Pool = present(renamed, c.Pool)
		s.Claims[name] = c
	}
	for name, d := range s.Drains {
		d.Pool = present(renamed, d.Pool)
		s.Drains[name] = d
	}
	for i := range s.Holds {
		s.Holds[i].Pool = present(renamed, s.Holds[i].Pool)
	}
	for i := range s.Requests {
		s.Requests[i].Pool = present(renamed, s.Requests[i].Pool)
	}
	for _, old := range sortedKeys(renamed) {
		inherit(s.Pauses, old, renamed[old])
		inherit(s.Pools, old, renamed[old])
	}
}

func inherit[V any](m map[string]V, from, to string) {
	v, ok := m[from]
	if !ok {
		return
	}
	delete(m, from)
	if _, taken := m[to]; !taken {
		m[to] = v
	}
}
