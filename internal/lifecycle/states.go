package lifecycle

import "slices"

// Effect says what the handler of a record does in a state. It is a property of
// the state alone: whoever takes a record up goes on by it.
type Effect string

// What is done in a state.
const (
	EffectNone     Effect = ""         // nothing: it waits
	EffectCreate   Effect = "create"   // the machine is created and started
	EffectWatch    Effect = "watch"    // the machine is looked at until its node is Ready
	EffectRemove   Effect = "remove"   // machine stopped, Node object and password secret deleted, machine deleted
	EffectForget   Effect = "forget"   // nothing is left to do; the record goes after a day
	EffectCordon   Effect = "cordon"   // looked at what forbids the drain, then cordoned
	EffectEmpty    Effect = "empty"    // looked at the pods: those of Jobs may end first, else the evictions begin
	EffectEvict    Effect = "evict"    // evictions are asked for, round by round
	EffectUncordon Effect = "uncordon" // made schedulable again
	EffectLook     Effect = "look"     // looked whether the node still exists
)

// Explain says what is done, in a few words.
func (e Effect) Explain() string {
	return map[Effect]string{
		EffectNone:     "nothing",
		EffectCreate:   "create the machine and start it, again after a pause if that fails",
		EffectWatch:    "look at the machine every few seconds",
		EffectRemove:   "stop the machine, delete the Node object, the password secret and the machine, in this order",
		EffectForget:   "forget the record after a day",
		EffectCordon:   "look at whatever could forbid the drain, then cordon",
		EffectEmpty:    "look at the pods: those of Jobs may end first, those of a node that is repaired are left, else the evictions begin",
		EffectEvict:    "evict, look, and look once more when the node seems empty",
		EffectUncordon: "uncordon",
		EffectLook:     "look from time to time whether the node still exists",
	}[e]
}

// State describes one state of a table.
type State struct {
	Name  string
	Goals []string // of a drain, nil: any
	// Means says what is so in the state.
	Means  string
	Effect Effect
	// Waits names what ends the state beside its deadline; empty: it is final.
	Waits string
	// Next is what comes next, for whoever looks at a record.
	Next string
}

// nodeStates describes the states of nodes.
var nodeStates = []State{
	{Name: string(Claimed), Means: "decision asked for it; no machine was started", Effect: EffectCreate,
		Waits: "the provider", Next: "its machine is created and started"},
	{Name: string(Created), Means: "its machine was started", Effect: EffectWatch,
		Waits: "its Node object", Next: "it registers with the API server"},
	{Name: string(Registered), Means: "its Node object exists", Effect: EffectWatch,
		Waits: "its kubelet", Next: "it becomes Ready"},
	{Name: string(Ready), Means: "it is capacity", Effect: EffectNone,
		Waits: "a decision to remove it, or the API server"},
	{Name: string(Unready), Means: "it was Ready and is not", Effect: EffectNone,
		Waits: "its kubelet, or a decision to repair it", Next: "it becomes Ready again, or is removed (repair.after)"},
	{Name: string(Failed), Means: "the claim failed; what it created is cleaned up", Effect: EffectRemove,
		Next: "what is left of it is cleaned up"},
	{Name: string(Lost), Means: "it vanished unasked; what is left is cleaned up", Effect: EffectRemove,
		Next: "what is left of it is cleaned up"},
	{Name: string(Removing), Means: "it was emptied, or is an orphan", Effect: EffectRemove,
		Waits: "provider and API server", Next: "its machine and Node object are removed"},
	{Name: string(Removed), Means: "nothing of it is left; what turns up again is removed, too", Effect: EffectRemove,
		Next: "its record is forgotten"},
	{Name: string(Renamed), Means: "its life goes on in the record of its Node, which the provider has named", Effect: EffectRemove,
		Next: "its record is forgotten"},
}

// drainStates describes the states of drains.
var drainStates = []State{
	{Name: string(DrainRequested), Means: "decision asked for it", Effect: EffectCordon,
		Waits: "the API server", Next: "it is cordoned"},
	{Name: string(DrainCordoned), Goals: []string{GoalCordon}, Means: "it takes no new pods, and stays so", Effect: EffectLook,
		Waits: "a person", Next: "it stays cordoned until somebody uncordons it or asks for more"},
	{Name: string(DrainCordoned), Goals: emptying, Means: "it takes no new pods", Effect: EffectEmpty,
		Waits: "the API server", Next: "its pods are evicted"},
	{Name: string(DrainFinishing), Goals: emptying, Means: "pods of Jobs are left to end by themselves", Effect: EffectEmpty,
		Waits: "the pods of Jobs, until their own deadline", Next: "pods of Jobs end, then the rest is evicted"},
	{Name: string(DrainDraining), Goals: emptying, Means: "pods are being evicted", Effect: EffectEvict,
		Waits: "the pods, and the budgets that protect them", Next: "its pods leave"},
	{Name: string(DrainForcing), Goals: removing, Means: "past its deadline, pods that are never evicted otherwise are evicted, too", Effect: EffectEvict,
		Waits: "the pods, and the budgets that protect them", Next: "its pods leave, by force where the pool says so"},
	{Name: string(DrainDrained), Goals: []string{GoalRemove}, Means: "nothing is left that had to move: the point of no return", Effect: EffectLook,
		Waits: "provisioning, which removes the node", Next: "its machine and Node object are removed"},
	{Name: string(DrainDrained), Goals: []string{GoalDrain}, Means: "nothing is left that had to move, and it stays so", Effect: EffectLook,
		Waits: "a person", Next: "it stays empty until somebody uncordons it or asks for more"},
	{Name: string(DrainUncordoning), Means: "it is being undone", Effect: EffectUncordon,
		Waits: "the API server", Next: "it is uncordoned"},
	{Name: string(DrainDone), Means: "it was undone, or its node is gone", Effect: EffectForget},
}

// describe returns the description of a state.
func describe(states []State, name, goal string) State {
	for _, s := range states {
		if s.Name == name && (s.Goals == nil || slices.Contains(s.Goals, goal)) {
			return s
		}
	}
	return State{Name: name}
}

// Effect is what provisioning does for a node in p.
func (p Phase) Effect() Effect { return describe(nodeStates, string(p), "").Effect }

// Effect is what draining does for the drain in its state.
func (d *Drain) Effect() Effect { return describe(drainStates, string(d.Phase), d.Goal).Effect }

// nodeMoot is what a message may say in a state without being news: it is so
// already, it is kept until the state is written that it belongs to, or the work
// under way brings it about. All else that the table does not have is impossible.
var nodeMoot = map[NodeEvent][]Phase{
	// The claim is known. Another one for the same name fails with a reason of its own.
	OnClaimed: {Claimed, Created, Registered, Ready, Unready, Failed, Lost, Removing, Removed, Renamed},
	// A machine that was restarted registers again; of one that is going it is late news.
	OnRegistered: {Claimed, Registered, Ready, Unready, Removing},
	OnReady:      {Claimed, Ready, Removing},
	OnUnready:    {Claimed, Created, Registered, Unready, Failed, Lost, Removing, Removed},
	OnDrained:    {Removing, Removed},
}

// Moot reports whether e is no news in p. Without a record nothing is news: the
// reconcile sweep sees to what has none.
func (p Phase) Moot(e NodeEvent) bool { return p == "" || slices.Contains(nodeMoot[e], p) }

// Impossible reports whether e can't happen in p: it is refused, and that is
// recorded.
func (p Phase) Impossible(e NodeEvent) bool { return !p.Can(e) && !p.Moot(e) }

// Row is one line of a table.
type Row struct {
	From, On, To string // From is empty where there is no record yet
	Goals        []string
	Deadline     Deadline
	Undo         Undo
}

// Table is a state machine as it is looked up, for documents and tests.
type Table struct {
	Name   string
	States []State
	Events []string
	Rows   []Row
}

// NodeTable is what can happen to a node.
func NodeTable() Table {
	t := Table{Name: "node", States: slices.Clone(nodeStates)}
	for _, e := range NodeEvents {
		t.Events = append(t.Events, string(e))
	}
	for _, r := range nodes {
		t.Rows = append(t.Rows, Row{From: string(r.from), On: string(r.on), To: string(r.to), Deadline: r.deadline, Undo: r.undo})
	}
	return t
}

// DrainTable is what can happen to a drain.
func DrainTable() Table {
	t := Table{Name: "drain", States: slices.Clone(drainStates)}
	for _, e := range DrainEvents {
		t.Events = append(t.Events, string(e))
	}
	for _, r := range drains {
		t.Rows = append(t.Rows, Row{From: string(r.from), On: string(r.on), To: string(r.to), Goals: r.goals, Deadline: r.deadline, Undo: r.undo})
	}
	return t
}

// NodeEvents are all that moves a node on, in the order of a life.
var NodeEvents = []NodeEvent{OnClaimed, OnStarted, OnRegistered, OnReady, OnUnready, OnFailed, OnLost, OnDrained, OnOrphaned, OnRemoved, OnAdopted, OnRenamed}

// DrainEvents are all that moves a drain on.
var DrainEvents = []DrainEvent{OnDrainRequested, OnCordoned, OnWaiting, OnEvicting, OnForced, OnEmptied, OnCancelled, OnExpired, OnUncordoned, OnGone}
