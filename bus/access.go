package bus

import (
	"slices"
	"strings"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// Access is what a kind of process does on the bus. Its permissions and what has
// to be provisioned for it follow from it.
type Access struct {
	// Name of the kind of process, e.g. "draining"; part of its inbox.
	Name string
	// Publishers are the names under which it publishes: see events.Catalog.
	Publishers []string
	// Handler receives events under this name: it has consumers and a bucket, and
	// may set events aside. Empty: none.
	Handler string
	// Batch says that Handler is a BatchHandler, which needs no bucket.
	Batch bool
	// State is a bucket that it writes without being a handler.
	State string
	// ReadStates are the buckets that it reads, by handler.
	ReadStates []string
	// Record says that it reads the stream of record by any choice of events. A
	// handler reads it key by key, to redrive and to fold again.
	Record bool
	// DeadLetters says that it reads what every handler set aside.
	DeadLetters bool
	// Timers says that it relays timers.
	Timers bool
}

// bucket is the state that it writes, by name; empty: none.
func (a Access) bucket() string {
	if a.Handler != "" && !a.Batch {
		return a.Handler
	}
	return a.State
}

// consumers are its durables of the stream of record.
func (a Access) consumers() []string {
	switch {
	case a.Handler == "":
		return nil
	case a.Batch:
		return []string{a.Handler}
	}
	out := make([]string, Partitions)
	for p := range out {
		out[p] = consumerName(a.Handler, p)
	}
	return out
}

// Permissions are what a NATS user may do, in the form of NATS user JWTs.
type Permissions struct {
	Publish   Subjects `json:"pub"`
	Subscribe Subjects `json:"sub"`
}

// Subjects are subjects that are allowed, less those that are denied.
type Subjects struct {
	Allow []string `json:"allow"`
	Deny  []string `json:"deny,omitempty"`
}

// InboxPrefix is where a process with the given access receives answers. It
// lies below the default "_INBOX", so that a credential without limits covers it.
func InboxPrefix(name string) string { return "_INBOX.k3sas-" + name }

// PermissionsFor returns the least that a process needs which does the work of
// roles, in a bus that is provisioned for all of everyone. What everyone else
// owns is closed to it. A resource that is added to the bus gets its line here
// and in Provision.
func PermissionsFor(everyone []Access, roles ...Access) Permissions {
	g := grants{}
	g.api("STREAM.INFO", StreamName)
	g.api("STREAM.INFO", TimersStream)
	g.api("STREAM.INFO", DeadLetterStream)
	g.api("STREAM.INFO", PayloadStream)
	for _, a := range roles {
		g.inbox(a)
		g.publishers(a)
		g.consumers(a)
		g.record(a)
		g.deadLetters(a)
		if b := a.bucket(); b != "" {
			g.read(b)
			g.pub("$KV." + bucketName(b) + ".>")
		}
		for _, b := range a.ReadStates {
			g.read(b)
		}
		if a.Timers {
			g.relay()
		}
	}
	g.protect(everyone, roles)
	return g.permissions()
}

// grants collects what is allowed.
type grants struct {
	publish, subscribe, deny []string
	reads                    bool // the record, through consumers that come and go
}

func (g *grants) pub(subject string) { g.publish = append(g.publish, subject) }

// api allows one request to JetStream.
func (g *grants) api(call string, tokens ...string) { g.pub(apiSubject(call, tokens...)) }

func apiSubject(call string, tokens ...string) string {
	return "$JS.API." + strings.Join(append([]string{call}, tokens...), ".")
}

func (g *grants) inbox(a Access) {
	g.subscribe = append(g.subscribe, InboxPrefix(a.Name)+".>")
}

// publishers allows the types that the catalogue says it publishes, and what the
// bus publishes on behalf of a handler.
func (g *grants) publishers(a Access) {
	as := slices.Clone(a.Publishers)
	if a.Handler != "" {
		as = append(as, publisherBus)
	}
	for _, d := range events.Catalog() {
		publishes := slices.ContainsFunc(d.Publishers, func(p string) bool { return slices.Contains(as, p) })
		// What a handler set aside it publishes again when it is redriven.
		redrives := a.Handler != "" && !a.Batch && events.MayRedrive(a.Handler) && d.ReadBy(a.Handler)
		if !publishes && !redrives {
			continue
		}
		if d.Unbounded() {
			g.pub("$O." + payloadBucket + ".>")
			g.payloads() // what is stored already is not stored again
		}
		node := "*"
		if d.Key == events.KeyCluster {
			node = events.ClusterKey
		}
		suffix := d.Suffix()
		if events.Addressed(d.Type) {
			to := "*"
			if slices.Contains(d.Publishers, publisherBus) {
				to = a.Handler // the bus speaks for it, to it
			}
			suffix = events.AddressedSuffix(d.Type, to)
		}
		g.pub(publishSubject(node, suffix))
	}
}

func publishSubject(node, suffix string) string {
	return strings.Join([]string{events.SubjectRoot, "*", nodeToken, node, suffix}, ".")
}

// consumers allows to pull from and acknowledge to the consumers of a handler, to
// set its events aside, and to arm its timers.
func (g *grants) consumers(a Access) {
	for _, c := range a.consumers() {
		g.durable(StreamName, c)
	}
	if a.Handler == "" {
		return
	}
	g.pub(deadRoot + "." + a.Handler + ".>")
	if !a.Batch {
		g.pub(armedRoot + "." + a.Handler + ".>")
	}
}

func (g *grants) durable(stream, name string) {
	g.api("CONSUMER.INFO", stream, name)
	g.api("CONSUMER.MSG.NEXT", stream, name)
	g.pub(strings.Join([]string{"$JS.ACK", stream, name, ">"}, "."))
}

// ephemeral allows consumers that come and go with their reader, for subjects
// that match filter. The name of a consumer is one token, so that it can't be
// limited to names of our own: see protect.
func (g *grants) ephemeral(stream, filter string) {
	g.api("CONSUMER.CREATE", stream, "*", filter)
	for _, call := range []string{"CONSUMER.INFO", "CONSUMER.MSG.NEXT", "CONSUMER.DELETE"} {
		g.api(call, stream, "*")
	}
}

func (g *grants) record(a Access) {
	if !a.Record && a.Handler == "" {
		return
	}
	g.reads = true
	g.payloads()
	g.ephemeral(StreamName, everything)
	g.api("DIRECT.GET", StreamName) // by sequence, from the one server that has it
	g.leader(StreamName)
	if a.Record {
		g.api("CONSUMER.CREATE", StreamName, "*") // several filters at once
		g.api("DIRECT.GET", StreamName, ">")
	}
}

// leader allows to ask the leader of a stream for a message: of several servers
// the others may be late.
func (g *grants) leader(stream string) { g.api("STREAM.MSG.GET", stream) }

// payloads allows to read the data of events that is stored apart.
func (g *grants) payloads() { g.leader(PayloadStream) }

// deadLetters allows a handler to read and remove what it set aside.
func (g *grants) deadLetters(a Access) {
	if a.DeadLetters {
		g.ephemeral(DeadLetterStream, deadRoot+".>")
		g.leader(DeadLetterStream)
	}
	if a.Handler != "" {
		g.ephemeral(DeadLetterStream, deadRoot+"."+a.Handler+".>")
		g.leader(DeadLetterStream) // not for its own alone: but whose event it was, it may read in the record
		g.api("STREAM.MSG.DELETE", DeadLetterStream)
	}
}

// read allows to read and watch a bucket.
func (g *grants) read(handler string) {
	stream, keys := bucketStream(handler), bucketWrite(handler, ">")
	g.api("STREAM.INFO", stream)
	g.api("DIRECT.GET", stream, keys) // from the one server that has it
	g.leader(stream)
	g.ephemeral(stream, keys)
	g.pub("$JS.FC." + stream + ".>") // a watcher confirms that it keeps up
}

// relay allows to take what fired and to publish it.
func (g *grants) relay() {
	g.durable(TimersStream, relayName)
	g.pub(publishSubject("*", events.AddressedSuffix(events.TypeTimerFired, "*")))
}

// protect closes the consumers of others to somebody who may make consumers.
func (g *grants) protect(everyone, roles []Access) {
	if !g.reads {
		return
	}
	own := map[string]bool{}
	for _, a := range roles {
		for _, c := range a.consumers() {
			own[c] = true
		}
	}
	for _, a := range everyone {
		for _, c := range a.consumers() {
			// Whoever may receive from a consumer may still not change it.
			g.deny = append(g.deny, apiSubject("CONSUMER.CREATE", StreamName, c), apiSubject("CONSUMER.CREATE", StreamName, c, ">"),
				apiSubject("CONSUMER.DELETE", StreamName, c))
			if !own[c] {
				g.deny = append(g.deny, apiSubject("CONSUMER.MSG.NEXT", StreamName, c))
			}
		}
	}
}

func (g *grants) permissions() Permissions {
	distinct := func(in []string) []string {
		out := slices.Clone(in)
		slices.Sort(out)
		return slices.Compact(out)
	}
	return Permissions{
		Publish:   Subjects{Allow: distinct(g.publish), Deny: distinct(g.deny)},
		Subscribe: Subjects{Allow: distinct(g.subscribe)},
	}
}
