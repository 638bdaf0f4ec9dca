package bus

import (
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/utils/clock"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus/embedded"
)

// Partitions is how many partitions the stream of record has. It is part of the
// stream's schema and can't be changed for an existing one: every busy
// file-backed consumer rewrites its state up to ten times a second, and four
// handlers over 64 partitions delivered a fifth of what 16 did.
const Partitions = 16

// schemaVersion is written into the metadata of the stream of record.
const schemaVersion = "1"

// Options describe a connection to the bus. Exactly one of URL and Server is
// required.
type Options struct {
	// URL of the NATS servers, e.g. "nats://nats-0:4222,nats://nats-1:4222".
	URL string
	// Server is an embedded server of this process; the connection uses no network.
	Server *embedded.Server
	// Connect are further options of the NATS connection: credentials, TLS.
	Connect []nats.Option

	// Role is what this process is called in InboxPrefix and in messages about
	// permissions, e.g. "draining". Default: it uses the default inbox.
	Role string
	// Provisioned says that Provision has made the streams, consumers and buckets.
	// Then they are looked up, never made or changed: all that a credential with
	// the permissions of PermissionsFor can do.
	Provisioned bool

	// Instance names this process, e.g. the pod's name. It owns leases and decides
	// the priorities of its pulls. Default: host name and a random suffix.
	Instance string

	// Sole says that nobody else uses this bus: an embedded server without a
	// listener, whose data directory is locked. Whoever holds a lease under another
	// name is then a process that died, and its work is taken up at once.
	Sole bool

	// Replicas of the streams and buckets. Default 1; 3 in a NATS cluster.
	Replicas int
	// MaxAge is how long the stream of record keeps an event. Default 7 days.
	MaxAge time.Duration
	// MaxBytes is how large the stream of record may grow; the oldest events are
	// discarded then. Default 1 GiB.
	MaxBytes int64

	// Admit is told what the stream of record holds before anything is made or
	// changed; an error ends Open. Default: everything is admitted.
	Admit func(LogState) error

	// InFlight is how many messages this process handles at once. Default 16.
	InFlight int
	// MaxAttempts is how often an event is tried before it is set aside. Default 10.
	MaxAttempts int
	// Times are the durations of the protocol; zero values mean the defaults.
	Times Times

	Logger     *slog.Logger          // default: discards
	Registerer prometheus.Registerer // default: none
	// Clock is used for leases, workers and timers. What is agreed with the server
	// (heartbeats, AckWait) always runs on the real clock. Default: the real clock.
	Clock clock.WithTicker

	// OnStep is called at "<handler>/write/before", "<handler>/write/after" and
	// "<handler>/publish/after" in the message path, and "<handler>/<op>/write/before"
	// and so on in the work path (op up to its first ':' or '/'), so that a test can
	// end the process exactly there. Data that is stored apart comes first, with
	// "payload/chunk/after" for each part and "payload/info/after".
	OnStep func(step string)
}

// Times are the durations of the protocol. A zero value means the default.
type Times struct {
	// AckWait is how long the server waits for a sign of life of who handles a
	// message before it gives it to another process. Default 10s.
	AckWait time.Duration
	// PullExpiry is how long a pull request of a busy partition stays open; a frozen
	// process attracts messages for at most that long. Default 5s, at least 1s.
	PullExpiry time.Duration
	// IdleExpiry is the same for a partition without messages. Default 30s.
	IdleExpiry time.Duration
	// Heartbeat is how often the server of a replicated consumer shows that a pull
	// is open; after two that are missing, it is opened anew with the consumer's
	// next leader. Default 5s.
	Heartbeat time.Duration
	// Busy is the delay of a message that arrives while the process already handles
	// InFlight others. Default 100ms.
	Busy time.Duration
	// BackoffMin and BackoffMax bound the growing delay between attempts.
	// Defaults 500ms and 30s.
	BackoffMin, BackoffMax time.Duration
	// Retry is how long a failed handler is tried again within one delivery, in
	// steps from 50ms. Default 1s, at most 2s; negative: not at all.
	Retry time.Duration
	// Handle is the longest a handler may hold a message. Default 60s.
	Handle time.Duration
	// Request bounds one request to the server: a publish, a read or write of a
	// record. Default 5s.
	Request time.Duration
	// Shutdown is how long a handler may go on after Run's context ended. Default 5s.
	Shutdown time.Duration
	// Sweep is how often overdue timers, owed events and expired leases are looked
	// for. Default 60s.
	Sweep time.Duration
	// Metrics is how often the queue depth is measured. Default 10s.
	Metrics time.Duration
}

func (t Times) withDefaults() Times {
	def := func(v *time.Duration, d time.Duration) { *v = cmp.Or(*v, d) }
	def(&t.AckWait, 10*time.Second)
	def(&t.PullExpiry, 5*time.Second)
	def(&t.IdleExpiry, 30*time.Second)
	def(&t.Heartbeat, 5*time.Second)
	def(&t.Busy, 100*time.Millisecond)
	def(&t.BackoffMin, 500*time.Millisecond)
	def(&t.BackoffMax, 30*time.Second)
	def(&t.Retry, time.Second)
	def(&t.Handle, 60*time.Second)
	def(&t.Request, 5*time.Second)
	def(&t.Shutdown, 5*time.Second)
	def(&t.Sweep, 60*time.Second)
	def(&t.Metrics, 10*time.Second)
	return t
}

func (t Times) validate() error {
	var errs []error
	for _, d := range []struct {
		name string
		v    time.Duration
		low  time.Duration
	}{
		{"ack_wait", t.AckWait, 100 * time.Millisecond},
		{"pull_expiry", t.PullExpiry, time.Second},
		{"idle_expiry", t.IdleExpiry, time.Second},
		{"heartbeat", t.Heartbeat, 500 * time.Millisecond}, // as NATS demands
		{"busy", t.Busy, time.Millisecond},
		{"backoff_min", t.BackoffMin, time.Millisecond},
		{"backoff_max", t.BackoffMax, t.BackoffMin},
		{"handle", t.Handle, time.Millisecond},
		{"request", t.Request, time.Millisecond},
		{"shutdown", t.Shutdown, time.Millisecond},
		{"sweep", t.Sweep, time.Millisecond},
		{"metrics", t.Metrics, time.Millisecond},
	} {
		if d.v < d.low {
			errs = append(errs, fmt.Errorf("times.%s: is %s, expected at least %s", d.name, d.v, d.low))
		}
	}
	if t.Retry > 2*time.Second {
		errs = append(errs, fmt.Errorf("times.retry: is %s, expected at most 2s: a message is not held for retries", t.Retry))
	}
	return errors.Join(errs...)
}

func (o Options) withDefaults() Options {
	if o.Instance == "" {
		host, err := os.Hostname()
		if err != nil {
			host = "process"
		}
		o.Instance = host + "-" + rand.Text()[:8]
	}
	o.Replicas = cmp.Or(o.Replicas, 1)
	o.MaxAge = cmp.Or(o.MaxAge, 7*24*time.Hour)
	o.MaxBytes = cmp.Or(o.MaxBytes, 1<<30)
	o.InFlight = cmp.Or(o.InFlight, 16)
	o.MaxAttempts = cmp.Or(o.MaxAttempts, 10)
	o.Times = o.Times.withDefaults()
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	if o.OnStep == nil {
		o.OnStep = func(string) {}
	}
	return o
}

func (o Options) validate() error {
	var errs []error
	if (o.URL == "") == (o.Server == nil) {
		errs = append(errs, errors.New("url, server: expected exactly one of them"))
	}
	for _, n := range []struct {
		name   string
		v, low int64
	}{
		{"replicas", int64(o.Replicas), 1},
		{"max_age", int64(o.MaxAge), int64(time.Minute)},
		{"max_bytes", o.MaxBytes, 1 << 20},
		{"in_flight", int64(o.InFlight), 1},
		{"max_attempts", int64(o.MaxAttempts), 1},
	} {
		if n.v < n.low {
			errs = append(errs, fmt.Errorf("%s: is %d, expected at least %d", n.name, n.v, n.low))
		}
	}
	errs = append(errs, o.Times.validate())
	return errors.Join(errs...)
}
