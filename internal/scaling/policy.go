package scaling

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/scaling/evictable"
)

// Directions of an alert rule, and verdicts of a decision.
const (
	Up   = "up"
	Down = "down"
	Held = "held"
)

// Orders in which the nodes of a pool are removed.
const (
	// RemoveNewest removes the node that was Ready last: long-lived nodes hold
	// what takes long to move.
	RemoveNewest = "newest"
	// RemoveLeastUtilized removes the node with the lowest requests.
	RemoveLeastUtilized = "least-utilized"
	// RemoveCheapest removes the node with the fewest pods to move.
	RemoveCheapest = "cheapest-to-move"
)

// Policy is what an operator wants of one cluster.
type Policy struct {
	Pools      []Pool
	AlertRules []AlertRule
	// MetricRules say how many nodes metrics ask for.
	MetricRules []MetricRule
	// ProtectedNodes are names of nodes that are never drained or removed.
	ProtectedNodes []string
	// StartupGrace is how long after the start of the program nothing is scaled
	// down by itself: the unneeded clocks and the alerts have to settle first.
	StartupGrace time.Duration
	// StaleAfter is the age from which an observation no longer counts for
	// scale-down.
	StaleAfter time.Duration
	// MaxUnreadyFraction (0..1) and MaxUnreadyCount: with more unready nodes
	// than both, nothing is scaled; the fault is elsewhere (as the cluster
	// autoscaler does, whose defaults are 45 % and 3). What a pool lacks of its
	// minimum comes all the same, MaxUnreadyCount nodes at a time: see emergency.
	MaxUnreadyFraction float64
	MaxUnreadyCount    int
	// MaxRemovalsPerHour is how many nodes of the whole cluster are removed within
	// an hour; below 1: any number.
	MaxRemovalsPerHour int
	// DryRun says that nobody acts on the decisions, so that a claim that
	// expires is no failure.
	DryRun bool
	// ExpendableBelow is the priority under which a pod neither asks for a node
	// nor keeps one, and gives way to any other. nil: -10, as the cluster
	// autoscaler's expendable-pods-priority-cutoff.
	ExpendableBelow *int32
	// PoolChoice chooses between pools that could serve the same pods: the first
	// of these (Choose…) that tells two pools apart decides; if none does, a hash.
	// Empty: least-waste, then least-nodes.
	PoolChoice []string
}

const defaultExpendableBelow = -10

func (p Policy) expendableBelow() int32 {
	if p.ExpendableBelow == nil {
		return defaultExpendableBelow
	}
	return *p.ExpendableBelow
}

// Pool is a group of nodes that are made alike.
type Pool struct {
	Name     string
	Provider string
	// RenamedFrom are names that the pool had: nodes of these are its nodes.
	RenamedFrom []string
	Min, Max    int
	// Headroom is room for pods that are to come, nil: none.
	Headroom *Headroom
	// Schedules set other limits within windows.
	Schedules []Schedule
	Size      Resources // allocatable of a new node
	// Priority is the pool's rank where PoolChoice has ChoosePriority: higher is
	// preferred.
	Priority int
	// PriceMicros is what a node costs an hour, in millionths of any currency,
	// at most 1000.
	PriceMicros int64
	Labels      map[string]string
	Taints      []corev1.Taint
	// StartupTaints are taints that new nodes carry, too, until something on them
	// is ready. Of a node's taints those count that have the key and effect.
	StartupTaints []corev1.Taint

	ScaleUpCooldown      time.Duration // between two scale-ups by alert
	ReplaceUnreadyAfter  time.Duration // then the minimum no longer counts on a node that is not Ready; 0: never
	RepairAfter          time.Duration // then a node that is not Ready is removed; 0: never
	ScaleDownAfterAdd    time.Duration // no removal this long after an addition
	ScaleDownAfterFail   time.Duration // no removal this long after a failed one
	ScaleDownCooldown    time.Duration // between two removals
	Stabilization        time.Duration // the highest need of this window counts
	UtilizationThreshold float64       // 0..1; below it a node is unneeded
	Unneeded             time.Duration // how long it must stay so
	MinLifetime          time.Duration // of a node, from Ready
	RemovalOrder         string        // Remove…: which node goes first; empty: RemoveNewest
	MaxRemovals          int           // nodes leaving at a time; below 1 counts as 1
	// Budgets limit further how many nodes leave at a time.
	Budgets []RemovalBudget
	// FlapCount times within FlapFreeze that a node is needed within FlapWithin of
	// a removal end removals for FlapFreeze. 0: never.
	FlapCount              int
	FlapWithin, FlapFreeze time.Duration
	RegisterDeadline       time.Duration // from the start of the machine to Ready
	ClaimExpiry            time.Duration // a claim or drain not taken up by then is void
	DrainDeadline          time.Duration // then the drain is undone, or a removal is forced
	ForceRemovals          bool          // at the deadline of a drain: see Order.Force
	Evicts                 evictable.Policy
	JobsDeadline           time.Duration // so long pods of Jobs may go on on a node that is to go; 0: not at all
	BackoffInitial         time.Duration // after a failed claim, doubled each time
	BackoffMax             time.Duration
	BackoffReset           time.Duration // without a failure this long, back to the initial value
}

// AlertRule says what an alert asks for.
type AlertRule struct {
	Name      string
	Matchers  []Matcher
	Pool      string
	Direction string // Up or Down
	// Amount is how many nodes are added once per cooldown while the rule's
	// alerts fire, or how many may leave at a time.
	Amount int
}

// pools returns the pools by name. Of two pools of one name the first counts;
// the configuration refuses such a policy.
func (p Policy) pools() []Pool {
	out := slices.Clone(p.Pools)
	slices.SortStableFunc(out, func(a, b Pool) int { return cmpString(a.Name, b.Name) })
	return slices.CompactFunc(out, func(a, b Pool) bool { return a.Name == b.Name })
}

// rules returns the alert rules in the order of their names.
func (p Policy) rules() []AlertRule {
	out := slices.Clone(p.AlertRules)
	slices.SortStableFunc(out, func(a, b AlertRule) int {
		return cmpStrings(a.Name, b.Name, a.Pool, b.Pool, a.Direction, b.Direction)
	})
	return out
}
