package events

import (
	"reflect"
	"slices"
	"strings"
)

// TypePrefix is the reverse-DNS prefix of every type of the catalogue.
const TypePrefix = "dev.k3s-autoscaler."

// KeyKind says which key the events of a type carry.
type KeyKind string

// The kinds of key.
const (
	KeyCluster KeyKind = "cluster" // ClusterKey
	KeyNode    KeyKind = "node"    // a node name
	KeyEither  KeyKind = "either"
)

// Names of the handlers, which are also the names of their consumers, state
// buckets and roles.
const (
	HandlerDecision     = "decision"
	HandlerProvisioning = "provisioning"
	HandlerDraining     = "draining"
	HandlerAuditing     = "auditing"
	HandlerAnnouncing   = "announcing"
	HandlerShadow       = "shadow"
)

// Definition describes one type of the catalogue.
type Definition struct {
	Type       string
	Key        KeyKind
	Publishers []string // roles that publish it
	Readers    []string // handlers that read it; auditing and announcing get all and are not listed
	Summary    string   // one sentence, for the generated reference
	payload    Payload
}

// Suffix is how the subject ends: "<noun>.<verb>"; the noun may hold dots.
func (d Definition) Suffix() string {
	s := strings.TrimPrefix(d.Type, TypePrefix)
	return s[:strings.LastIndexByte(s, '.')]
}

// SchemaURI identifies the JSON Schema of the payload.
func (d Definition) SchemaURI() string {
	return "https://k3s-autoscaler.dev/schemas/" + strings.TrimPrefix(d.Type, TypePrefix) + ".json"
}

// ReadBy reports whether the named handler reads this type.
func (d Definition) ReadBy(handler string) bool { return slices.Contains(d.Readers, handler) }

// NewPayload returns a pointer to a zero payload of the type.
func (d Definition) NewPayload() Payload { return d.newPayload() }

func (d Definition) newPayload() Payload {
	return reflect.New(reflect.TypeOf(d.payload)).Interface().(Payload)
}

var (
	catalog = buildCatalog()
	byType  = indexCatalog(catalog)
)

// Catalog returns every type, in a fixed order.
func Catalog() []Definition { return slices.Clone(catalog) }

// Lookup finds a type of the catalogue.
func Lookup(typ string) (Definition, bool) {
	d, ok := byType[typ]
	return d, ok
}

func indexCatalog(ds []Definition) map[string]Definition {
	m := make(map[string]Definition, len(ds))
	for _, d := range ds {
		m[d.Type] = d
	}
	return m
}

func buildCatalog() []Definition {
	def := func(p Payload, key KeyKind, publishers, readers, summary string) Definition {
		return Definition{Type: p.EventType(), Key: key, Publishers: strings.Fields(publishers),
			Readers: strings.Fields(readers), Summary: summary, payload: p}
	}
	return readByShadow([]Definition{
		def(SnapshotCaptured{}, KeyCluster, "collector", "decision", "The whole state of a cluster that decisions need: on start and every 15 minutes."),
		def(SnapshotChanged{}, KeyCluster, "collector", "decision", "What changed since the snapshot it names as its base."),
		def(AlertReceived{}, KeyCluster, "alerting", "decision", "Alertmanager reported an alert firing or resolved."),
		def(SignalReceived{}, KeyCluster, "api collector", "decision", "A metric was pushed or a query answered."),
		def(ScaleRequested{}, KeyCluster, "api", "decision", "A person or tool asked to scale a pool or to act on a node."),
		def(PoolPaused{}, KeyCluster, "api", "decision", "A pool was paused: nothing is added to or removed from it."),
		def(PoolResumed{}, KeyCluster, "api", "decision", "A pause ended."),
		def(PoolBackoffReset{}, KeyCluster, "api", "decision", "The backoff of a pool was reset by hand."),
		def(ConfigApplied{}, KeyCluster, "app", "decision", "A configuration took effect: the full policy of the cluster, without secrets."),
		def(ConfigRejected{}, KeyCluster, "app", "", "A configuration was refused; the previous one stays."),
		def(ScaleupDecided{}, KeyCluster, "decision", "", "Nodes are to be added to a pool, with every reason."),
		def(ScaledownDecided{}, KeyCluster, "decision", "", "Nodes are to be removed from a pool, with every reason."),
		def(ScaleHeld{}, KeyCluster, "decision", "", "A pool is left as it is, and what holds it; published when the verdict changes."),
		def(PoolFrozen{}, KeyCluster, "decision", "", "A pool flaps and was frozen."),
		def(PolicyPromoted{}, KeyCluster, "decision", "", "A shadow policy became the active one."),
		def(DecisionCheckpointed{}, KeyCluster, "decision", "shadow", "The full state of decision after a full snapshot: where a replay starts."),
		def(NodeClaimed{}, KeyNode, "decision", "provisioning", "A node is to be created under this name, at most once."),
		def(NodeDrainRequested{}, KeyNode, "decision", "draining", "A node is to be cordoned, drained, or drained and removed."),
		def(NodeDrainCancelled{}, KeyNode, "decision", "draining", "A drain or cordon is to be undone."),
		def(NodeCreated{}, KeyNode, "provisioning", "", "The machine or container of a claim was created and started."),
		def(NodeRegistered{}, KeyNode, "provisioning", "", "The node appeared in the API server."),
		def(NodeReady{}, KeyNode, "provisioning", "", "The node is Ready: capacity."),
		def(NodeUnready{}, KeyNode, "provisioning", "", "The node was Ready and no longer is."),
		def(NodeFailed{}, KeyNode, "provisioning", "", "A claim failed; why, with the machine's own log."),
		def(NodeLost{}, KeyNode, "provisioning", "", "A node vanished without being asked to."),
		def(NodeRemovalProgressed{}, KeyNode, "provisioning", "", "One step of a removal is done."),
		def(NodeRemoved{}, KeyNode, "provisioning", "", "A node and everything that belonged to it is gone."),
		def(NodeTransitionRefused{}, KeyNode, "provisioning", "", "Something was said of a node that can't happen in its state; nothing was changed."),
		def(NodeObserved{}, KeyNode, "collector provisioning", "provisioning", "The API server or the provider says that something about a node changed."),
		def(NodeDiverged{}, KeyNode, "provisioning", "provisioning", "The reconcile sweep found provider, Kubernetes and records in disagreement."),
		def(NodeAdopted{}, KeyNode, "provisioning", "", "A record was made of a Ready node of ours that had none."),
		def(NodeCordoned{}, KeyNode, "draining", "provisioning", "A node takes no new pods."),
		def(NodeDrainProgressed{}, KeyNode, "draining", "provisioning", "Pods were evicted, or pods of Jobs are waited for."),
		def(NodeDrainBlocked{}, KeyNode, "draining", "provisioning", "An eviction is refused; by what, and what would help."),
		def(NodeDrained{}, KeyNode, "draining", "provisioning", "No pod is left that had to move. For a removal, the point of no return."),
		def(NodeUncordoned{}, KeyNode, "draining", "provisioning", "A drain or cordon was undone; the node is capacity again."),
		def(NodeCancelRefused{}, KeyNode, "draining", "", "A cancel came after the point of no return and was refused."),
		def(TimerFired{}, KeyEither, "bus", "", "A deadline that a handler armed has come; read by that handler alone."),
		def(DeadletterRecorded{}, KeyEither, "bus", "", "An event could not be handled and was set aside, with its reason."),
		def(DeadletterRedriveRequested{}, KeyEither, "api", "", "A person or tool asked to publish dead letters again; read by the handler that it names alone."),
		def(DeadletterDropRequested{}, KeyEither, "api", "", "A person or tool asked to delete dead letters; read by the handler that it names alone."),
		def(DeadletterRedriven{}, KeyEither, "bus", "", "Dead letters were published again, for the handler that it names, which alone reads this."),
		def(DeadletterDropped{}, KeyEither, "bus", "", "Dead letters were deleted."),
		def(LogRebased{}, KeyCluster, "app", "", "A person declared the present stream of record to be the truth, after events were lost."),
		def(DeadletterRequestRefused{}, KeyEither, "bus", "", "A redrive or drop could not be carried out, and why."),
		def(AccessRefused{}, KeyCluster, "api", "", "Calls were refused; aggregated."),
		def(ReconcileRequested{}, KeyCluster, "api", "provisioning", "A person or tool asked for a reconcile sweep now, or what one would do."),
		def(ReconcileReported{}, KeyCluster, "provisioning", "", "What a sweep that was asked for found, and what is done about it."),
		def(ShadowStarted{}, KeyCluster, "api", "shadow", "A candidate policy is judged beside the one in force from now on; nobody acts on it."),
		def(ShadowStopped{}, KeyCluster, "api", "shadow", "A candidate policy is no longer judged."),
		def(ShadowDecided{}, KeyCluster, "shadow", "", "A candidate policy decides otherwise than the one in force, with both explanations; or they agree again."),
	})
}

// readByShadow gives the shadow whatever decision reads: it decides on the same.
func readByShadow(ds []Definition) []Definition {
	for i, d := range ds {
		if d.ReadBy(HandlerDecision) {
			ds[i].Readers = append(d.Readers, HandlerShadow)
		}
	}
	return ds
}

// MayRedrive reports whether a handler may publish again what it set aside. The
// shadow may not: it reads what makes decision act, and a credential that can
// publish a copy of that could publish that. It needs no copies either, since each
// checkpoint of decision sets it right.
func MayRedrive(handler string) bool { return handler != HandlerShadow }
