package scaling

import "time"

// kindJob is the owner of pods that end by themselves.
const kindJob = "Job"

// lets reports whether a node of the pool lets the pod end by itself before it is
// removed. What forbids its eviction is no reason against the removal then: as long
// as it runs it is waited for, and past the deadline draining asks again what may be
// evicted. Room elsewhere is asked for all the same: it may be needed in the end.
func (p *poolRun) lets(pod *Pod) bool { return p.JobsDeadline > 0 && pod.OwnerKind == kindJob }

// jobsDeadline is how long a drain waits for pods of Jobs. A person who overrides
// does not wait.
func (p *poolRun) jobsDeadline(goal string, r Request) time.Duration {
	if goal == GoalCordon || r.Override {
		return 0
	}
	return p.JobsDeadline
}
