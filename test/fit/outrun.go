package fit

import (
	"fmt"
	"slices"
)

// OutrunBy says which of the pods, all of them on nodes, keep one that waits from
// having a place: with those out of the way the scheduler would place it, on a node
// that is there or on a new one, and with any fewer it would not. Empty: they are not
// the reason.
func OutrunBy(s *Scheduler, c *Case, waiting string, pods []string) ([]string, error) {
	fits := func(without []string) (bool, error) {
		if len(without) == 0 {
			return false, nil
		}
		c := c.Clone()
		c.evict(without)
		fates, err := s.Schedule(c, []string{waiting})
		if err != nil {
			return false, fmt.Errorf("schedule pod %s without %v: %w", waiting, without, err)
		}
		probes, err := s.Probe(c, []string{waiting}, c.templates())
		if err != nil {
			return false, fmt.Errorf("probe pod %s without %v: %w", waiting, without, err)
		}
		return slices.ContainsFunc(append(fates, probes...), func(f Fate) bool { return f.Node != "" }), nil
	}
	if ok, err := fits(pods); !ok {
		return nil, err
	}
	for i := 0; i < len(pods); {
		fewer := slices.Delete(slices.Clone(pods), i, i+1)
		ok, err := fits(fewer)
		switch {
		case err != nil:
			return nil, err
		case ok:
			pods = fewer
		default:
			i++
		}
	}
	return pods, nil
}
