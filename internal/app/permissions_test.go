package app

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/bustest"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// natsBundle is a NATS server with an administrator and one user for each role,
// configured by what WritePermissions writes.
type natsBundle struct {
	url string
}

func startNATS(t *testing.T) *natsBundle {
	t.Helper()
	dir := t.TempDir()
	var perms bytes.Buffer
	require.NoError(t, WritePermissions(&perms, FormatNATS, nil))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "permissions.conf"), perms.Bytes(), 0o600))
	var conf strings.Builder
	fmt.Fprintf(&conf, "listen: \"127.0.0.1:-1\"\njetstream { store_dir: %q }\ninclude ./permissions.conf\nauthorization { users: [\n {user: admin, password: admin}\n", dir)
	for _, r := range Roles() {
		fmt.Fprintf(&conf, " {user: %s, password: %s, permissions: $%s}\n", r, r, variable(r))
	}
	conf.WriteString("] }\n")
	return &natsBundle{url: serve(t, dir, conf.String()).ClientURL()}
}

func (n *natsBundle) options(user string) bus.Options {
	o := bus.Options{URL: n.url, Connect: []nats.Option{nats.UserInfo(user, user)}, MaxBytes: 64 << 20, Times: bustest.Times(), Provisioned: true}
	if user != "admin" {
		o.Role = user
	}
	return o
}

func (n *natsBundle) provision(t *testing.T) []bus.Provisioned {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	made, err := bus.Provision(ctx, n.options("admin"), everyone())
	require.NoError(t, err)
	return made
}

// intruder is a plain NATS connection with the credential of a role.
type intruder struct {
	nc      *nats.Conn
	refused chan string
}

func (n *natsBundle) intrude(t *testing.T, role string) *intruder {
	t.Helper()
	i := &intruder{refused: make(chan string, 100)}
	var err error
	i.nc, err = nats.Connect(n.url, nats.UserInfo(role, role), nats.CustomInboxPrefix(bus.InboxPrefix(role)),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { i.refused <- err.Error() }))
	require.NoError(t, err)
	t.Cleanup(i.nc.Close)
	return i
}

// ask sends a request and returns what the server says: its answer, or which
// subject it refuses.
func (i *intruder) ask(t *testing.T, m *nats.Msg) string {
	t.Helper()
	answer := make(chan string, 1)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	go func() {
		if r, err := i.nc.RequestMsgWithContext(ctx, m); err == nil {
			answer <- string(r.Data)
		}
	}()
	select {
	case a := <-answer:
		return a
	case r := <-i.refused:
		return r
	case <-ctx.Done():
		t.Fatalf("no answer to %s", m.Subject)
		return ""
	}
}

func message(subject, body string, header ...string) *nats.Msg {
	m := &nats.Msg{Subject: subject, Data: []byte(body), Header: nats.Header{}}
	for i := 0; i < len(header); i += 2 {
		m.Header.Set(header[i], header[i+1])
	}
	return m
}

func TestTheServerRefusesWhatIsNotARolesOwn(t *testing.T) {
	t.Parallel()
	n := startNATS(t)
	n.provision(t)
	for _, role := range Roles() {
		i := n.intrude(t, role)
		mine, copies := map[string]bool{}, map[string]bool{}
		for _, d := range events.Catalog() {
			copies[d.Type] = !access(role).Batch && d.ReadBy(role) && role != RoleShadow // a redrive publishes them again
			for _, p := range d.Publishers {
				for _, own := range access(role).Publishers {
					mine[d.Type] = mine[d.Type] || p == own
				}
				copies[d.Type] = copies[d.Type] || p == "bus" && role != RoleCollector && role != RoleGateway && !events.Addressed(d.Type)
			}
		}
		var foreign, own string
		for _, d := range events.Catalog() {
			subject := "k3sas.home.node._cluster." + d.Suffix()
			if events.Addressed(d.Type) {
				subject = "k3sas.home.node._cluster." + events.AddressedSuffix(d.Type, "nobody")
			}
			switch {
			case mine[d.Type] && !events.Addressed(d.Type):
				if own = subject; d.Key == events.KeyNode {
					own = "k3sas.home.node.n1." + d.Suffix()
				}
			case !mine[d.Type] && !copies[d.Type] && (role != RoleGateway || d.Type != events.TypeTimerFired):
				foreign = subject
				require.Contains(t, i.ask(t, message(subject, "{}")), "Permissions Violation", "%s publishes %s", role, d.Type)
			}
		}
		require.NotEmpty(t, foreign)
		if !access(role).Batch { // it publishes nothing of its own
			require.Contains(t, i.ask(t, message(own, "{}")), `"stream":"K3SAS"`, "%s publishes its own", role)
			require.Contains(t, i.ask(t, message(own, "{}", "Nats-Rollup", "all")), "rollup not permitted", "%s erases by a header", role)
		}
		for what, m := range map[string]*nats.Msg{
			"purge":                      message("$JS.API.STREAM.PURGE.K3SAS", ""),
			"delete a message":           message("$JS.API.STREAM.MSG.DELETE.K3SAS", `{"seq":1}`),
			"delete the stream":          message("$JS.API.STREAM.DELETE.K3SAS", ""),
			"update the stream":          message("$JS.API.STREAM.UPDATE.K3SAS", `{"name":"K3SAS"}`),
			"create a stream":            message("$JS.API.STREAM.CREATE.X", `{"name":"X","subjects":["x"]}`),
			"purge the timers":           message("$JS.API.STREAM.PURGE.K3SAS_TIMERS", ""),
			"purge the dead letters":     message("$JS.API.STREAM.PURGE.K3SAS_DEADLETTERS", ""),
			"erase the timers":           message("k3sas-armed.nobody.home.n1", "", "Nats-Rollup", "all"),
			"another's dead letter":      message("k3sas-dead.nobody.home.n1", ""),
			"change a consumer":          message("$JS.API.CONSUMER.CREATE.K3SAS.provisioning-3", `{}`),
			"narrow a consumer":          message("$JS.API.CONSUMER.CREATE.K3SAS.provisioning-3.p.*.k3sas.*.node._cluster.>", `{}`),
			"delete a consumer":          message("$JS.API.CONSUMER.DELETE.K3SAS.provisioning-3", ""),
			"delete the auditor's":       message("$JS.API.CONSUMER.DELETE.K3SAS.auditing", ""),
			"make a durable the old way": message("$JS.API.CONSUMER.DURABLE.CREATE.K3SAS.x", `{}`),
			"unpin":                      message("$JS.API.CONSUMER.UNPIN.K3SAS.auditing", `{}`),
			"pause":                      message("$JS.API.CONSUMER.PAUSE.K3SAS.decision-0", `{}`),
			"consumers of the timers":    message("$JS.API.CONSUMER.CREATE.K3SAS_TIMERS.x", `{}`),
			"account information":        message("$JS.API.INFO", ""),
			"a get of the timers":        message("$JS.API.STREAM.MSG.GET.K3SAS_TIMERS", `{"seq":1}`),
			"read by sequence":           message("$JS.API.DIRECT.GET.KV_k3sas-collector", `{"seq":1}`),
			"purge the payloads":         message("$JS.API.STREAM.PURGE.OBJ_k3sas-payloads", ""),
			"delete a payload":           message("$JS.API.STREAM.MSG.DELETE.OBJ_k3sas-payloads", `{"seq":1}`),
			"another object store":       message("$O.somebody-elses.M.x", "{}"),
			"anything else":              message("somebody.elses", ""),
		} {
			require.Contains(t, i.ask(t, m), "Permissions Violation", "%s: %s", role, what)
		}
		chunk, info := "$O.k3sas-payloads.C.x", "$O.k3sas-payloads.M.x"
		if role == RoleGateway || role == RoleCollector || role == RoleDecision {
			require.Contains(t, i.ask(t, message(chunk, "{}")), `"stream":"OBJ_k3sas-payloads"`, "%s stores what it may publish", role)
			require.Contains(t, i.ask(t, message(info, "{}")), `"stream":"OBJ_k3sas-payloads"`, "%s stores what it may publish", role)
			require.Contains(t, i.ask(t, message(chunk, "{}", "Nats-Rollup", "all")), "rollup not permitted", "%s erases the payloads by a header", role)
		} else {
			require.Contains(t, i.ask(t, message(chunk, "{}")), "Permissions Violation", "%s stores a payload", role)
			require.Contains(t, i.ask(t, message(info, "{}")), "Permissions Violation", "%s stores a payload", role)
		}
		require.NotContains(t, i.ask(t, message("$JS.API.STREAM.MSG.GET.OBJ_k3sas-payloads", `{"seq":1}`)), "Permissions Violation", "%s reads what it reads about", role)
		for _, c := range []string{"decision-0", "provisioning-3", "draining-15", "auditing", "announcing", "shadow-1"} {
			if !strings.HasPrefix(c, role) {
				require.Contains(t, i.ask(t, message("$JS.API.CONSUMER.MSG.NEXT.K3SAS."+c, "1")), "Permissions Violation", "%s takes messages of %s", role, c)
				require.Contains(t, i.ask(t, message("$JS.ACK.K3SAS."+c+".1.1.1.1.0", "+TERM")), "Permissions Violation", "%s ends messages of %s", role, c)
			}
		}
		readable := map[string]bool{role: true}
		for _, b := range access(role).ReadStates {
			readable[b] = true
		}
		for _, b := range []string{RoleCollector, RoleDecision, RoleProvisioning, RoleDraining, RoleShadow} {
			key := "$KV.k3sas-" + b + ".record.home.n1"
			if b != role {
				require.Contains(t, i.ask(t, message(key, "{}")), "Permissions Violation", "%s writes the bucket of %s", role, b)
			}
			if !readable[b] {
				require.Contains(t, i.ask(t, message("$JS.API.DIRECT.GET.KV_k3sas-"+b+"."+key, "")), "Permissions Violation", "%s reads the bucket of %s", role, b)
				require.Contains(t, i.ask(t, message("$JS.API.STREAM.MSG.GET.KV_k3sas-"+b, `{"seq":1}`)), "Permissions Violation", "%s reads the bucket of %s", role, b)
				require.Contains(t, i.ask(t, message("$JS.API.CONSUMER.CREATE.KV_k3sas-"+b+".x.$KV.k3sas-"+b+".>", "{}")), "Permissions Violation", "%s watches the bucket of %s", role, b)
			}
		}
		if role == RoleCollector {
			require.Contains(t, i.ask(t, message("$JS.API.CONSUMER.CREATE.K3SAS.x.p.1.k3sas.home.node.n1.>", `{}`)), "Permissions Violation", "%s makes a consumer", role)
			for _, get := range []string{"DIRECT.GET", "STREAM.MSG.GET"} {
				require.Contains(t, i.ask(t, message("$JS.API."+get+".K3SAS", `{"seq":1}`)), "Permissions Violation", "%s reads the record", role)
			}
		}
		if !access(role).Record {
			require.Contains(t, i.ask(t, message("$JS.API.CONSUMER.CREATE.K3SAS.x", `{}`)), "Permissions Violation", "%s makes a consumer of anything", role)
		}
		_, err := i.nc.SubscribeSync(">")
		require.NoError(t, err)
		require.NoError(t, i.nc.Flush())
		require.Contains(t, <-i.refused, "Permissions Violation for Subscription", role)
	}
}

func TestLargeEventsNeedTheRightToStoreTheirData(t *testing.T) {
	t.Parallel()
	n := startNATS(t)
	n.provision(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	open := func(role string) *bus.Bus {
		b, err := bus.Open(ctx, n.options(role))
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, b.Close()) })
		return b
	}
	text := make([]byte, 3<<20)
	_, err := rand.Read(text)
	require.NoError(t, err)
	full := events.SnapshotCaptured{Epoch: 1, Digest: base64.StdEncoding.EncodeToString(text), CapturedAt: time.Now()}
	e, err := events.New(events.Meta{Cluster: "home", Publisher: "collector", ID: "full", Time: time.Now()}, full)
	require.NoError(t, err)
	require.NoError(t, open(RoleCollector).Publish(ctx, e))

	got := make(chan bus.Delivery, 1)
	decision := open(RoleDecision)
	rctx, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- decision.Run(rctx, forwarder{events.HandlerDecision, got}) }()
	d := <-got
	require.Equal(t, string(e.Data()), string(d.Event.Data()))
	stop()
	require.NoError(t, <-ended)

	node, err := events.New(events.Meta{Cluster: "home", Node: "n1", Publisher: "provisioning", ID: "odd", Time: time.Now()},
		events.NodeObserved{Node: "n1", What: events.ObservedReady, Reason: full.Digest, At: time.Now()})
	require.NoError(t, err)
	err = open(RoleProvisioning).Publish(ctx, node)
	require.ErrorIs(t, err, bus.ErrForbidden)
	require.ErrorContains(t, err, "store the data of event odd")
	require.ErrorContains(t, err, "role provisioning may not publish to \"$O.k3sas-payloads.C.")
}

// forwarder is a handler that shows what it is given.
type forwarder struct {
	name string
	got  chan bus.Delivery
}

func (h forwarder) Name() string { return h.name }
func (h forwarder) Handle(_ context.Context, d bus.Delivery) error {
	h.got <- d
	return nil
}

func TestAnUnprovisionedBusIsSaidToBe(t *testing.T) {
	t.Parallel()
	n := startNATS(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, err := bus.Open(ctx, n.options(RoleDraining))
	require.ErrorIs(t, err, bus.ErrNotProvisioned)
	require.ErrorContains(t, err, "stream K3SAS is missing")
	require.ErrorContains(t, err, "run 'k3s-autoscaler bus provision'")

	made := n.provision(t)
	require.Contains(t, made, bus.Provisioned{Kind: "stream", Name: "K3SAS", Action: bus.ActionCreated})
	require.Contains(t, made, bus.Provisioned{Kind: "stream", Name: "OBJ_k3sas-payloads", Action: bus.ActionCreated})
	require.Contains(t, made, bus.Provisioned{Kind: "consumer", Name: "K3SAS/draining-7", Action: bus.ActionCreated})
	require.Contains(t, made, bus.Provisioned{Kind: "bucket", Name: "k3sas-collector", Action: bus.ActionCreated})
	for _, p := range n.provision(t) {
		require.Equal(t, bus.ActionUnchanged, p.Action, p.Name)
	}

	// What an older version left behind.
	nc, err := nats.Connect(n.url, nats.UserInfo("admin", "admin"))
	require.NoError(t, err)
	defer nc.Close()
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	c, err := js.Consumer(ctx, bus.StreamName, "draining-7")
	require.NoError(t, err)
	cfg := c.CachedInfo().Config
	cfg.FilterSubjects = cfg.FilterSubjects[1:]
	_, err = js.UpdateConsumer(ctx, bus.StreamName, cfg)
	require.NoError(t, err)
	require.NoError(t, js.DeleteConsumer(ctx, bus.StreamName, "draining-8"))
	b, err := bus.Open(ctx, n.options(RoleDraining))
	require.NoError(t, err)
	err = b.Run(ctx, idle(events.HandlerDraining))
	require.ErrorIs(t, err, bus.ErrNotProvisioned)
	require.ErrorContains(t, err, "consumer draining-7 of stream K3SAS: delivers")
	require.ErrorContains(t, err, "consumer draining-8 of stream K3SAS is missing")
	require.NoError(t, b.Close())

	repaired := map[string]string{}
	for _, p := range n.provision(t) {
		repaired[p.Name] = p.Action
	}
	require.Equal(t, bus.ActionUpdated, repaired["K3SAS/draining-7"])
	require.Equal(t, bus.ActionCreated, repaired["K3SAS/draining-8"])
	require.Equal(t, bus.ActionUnchanged, repaired["K3SAS/draining-9"])
}

// idle is a handler that is done at once.
type idle string

func (h idle) Name() string                             { return string(h) }
func (idle) Handle(context.Context, bus.Delivery) error { return nil }

func TestTheServerRefusesTheShadowWhateverMakesOthersAct(t *testing.T) {
	t.Parallel()
	n := startNATS(t)
	n.provision(t)
	i := n.intrude(t, RoleShadow)
	for typ, key := range map[string]string{
		events.TypeNodeClaimed: "n1", events.TypeNodeDrainRequested: "n1", events.TypeNodeDrainCancelled: "n1", events.TypeScaleupDecided: "_cluster",
		events.TypeScaledownDecided: "_cluster", events.TypeScaleRequested: "_cluster", events.TypePoolPaused: "_cluster", events.TypeConfigApplied: "_cluster",
		events.TypePolicyPromoted: "_cluster", events.TypeAlertReceived: "_cluster", events.TypeSnapshotCaptured: "_cluster", events.TypeSnapshotChanged: "_cluster",
		events.TypeShadowStarted: "_cluster", events.TypeDecisionCheckpointed: "_cluster",
	} {
		def, ok := events.Lookup(typ)
		require.True(t, ok)
		require.Contains(t, i.ask(t, message("k3sas.home.node."+key+"."+def.Suffix(), "{}")), "Permissions Violation", typ)
		// Not even as a copy that is marked for it: the server can't read marks.
		require.Contains(t, i.ask(t, message("k3sas.home.node."+key+"."+def.Suffix(), "{}", "ce-"+events.ExtRedrive, "shadow/1/1/1")), "Permissions Violation", typ)
	}
	require.Contains(t, i.ask(t, message("k3sas.home.node._cluster.shadow.decided", "{}")), `"stream":"K3SAS"`, "its own")
	require.Contains(t, i.ask(t, message("k3sas.home.node._cluster.timer.decision.fired", "{}")), "Permissions Violation", "it hears decision's timers and rings none")
}
