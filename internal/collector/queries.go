package collector

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/utils/clock"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// maxReason is how long the reason why a value is unknown may be, in bytes.
const maxReason = 400

// Prometheus answers queries.
type Prometheus interface {
	// Query returns the one number that a query comes to now. Whatever else there is
	// instead is an error that says so. It returns within a timeout of its own.
	Query(ctx context.Context, query string) (float64, error)
}

// Policies is where the policies come from whose queries are asked.
type Policies interface {
	// Policies returns the one that decision follows, and the candidate that is judged
	// beside it, if there is one. With an error it returns those that could be read:
	// none unless the one in force could.
	Policies(ctx context.Context) ([]events.Policy, error)
}

// QueryOptions configure Queries. Cluster, Policies, Publisher and Epoch are
// required.
type QueryOptions struct {
	Cluster string
	// Prometheus is nil where none is configured: then every query is unknown.
	Prometheus Prometheus
	Policies   Policies
	Publisher  Publisher
	// Epoch is higher than that of every collector of this cluster before: of two
	// that ask, decision believes the later one.
	Epoch int64

	Parallel       int           // queries at a time. Default 4
	PolicyEvery    time.Duration // between looks for another policy. Default 5s
	PublishTimeout time.Duration // of one publication. Default 10s

	Clock      clock.WithTicker      // default the wall clock
	Logger     *slog.Logger          // default slog.Default()
	Registerer prometheus.Registerer // nil: no metrics
}

func (o *QueryOptions) complete() error {
	var errs []error
	if err := events.ValidateCluster(o.Cluster); err != nil {
		errs = append(errs, err)
	}
	if o.Policies == nil {
		errs = append(errs, errors.New("policies is nil"))
	}
	if o.Publisher == nil {
		errs = append(errs, errors.New("publisher is nil"))
	}
	if o.Epoch < 1 {
		errs = append(errs, fmt.Errorf("epoch is %d, expected at least 1", o.Epoch))
	}
	o.Parallel = cmp.Or(max(o.Parallel, 0), 4)
	o.PolicyEvery = cmp.Or(max(o.PolicyEvery, 0), 5*time.Second)
	o.PublishTimeout = cmp.Or(max(o.PublishTimeout, 0), 10*time.Second)
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return errors.Join(errs...)
}

// Queries asks Prometheus the queries of the metric rules of one cluster, those of
// a candidate policy among them, and publishes what it says as signal.received. A
// query that several rules have at one interval is asked once.
//
// Queries of one interval are asked together, at instants that depend on the cluster
// alone, so that many clusters do not ask one Prometheus at once. What was
// published is repeated when it differs, when half of the time has passed after
// which decision would call it stale, or always when a rule counts points. An
// error is published as unknown at once: nobody has to wait for a timeout to know
// that nothing is known.
type Queries struct {
	o       QueryOptions
	log     *slog.Logger
	metrics *queryInstruments

	// Of the loop alone.
	queries   map[string]*asked // by digest
	policyAt  time.Time         // when the policies are looked for next
	noPolicy  bool              // that failed, and was said
	unheard   bool              // the bus did not acknowledge, and that was said
	published uint64            // for the ids of events
}

// asked is a query with what is known of it.
type asked struct {
	wanted
	next   time.Time // when it is due
	failed bool      // the last answer was none, and that was said
	// What decision was told last.
	toldAt time.Time // zero: nothing yet
	told   *float64
}

// wanted is a query that rules have.
type wanted struct {
	rule     string // the name of the first of them
	query    string
	digest   string
	interval time.Duration
	good     time.Duration // the longest stale_after: so long an answer may be of use
	repeat   time.Duration // an answer that has not changed is repeated after so long
	points   bool          // one of them counts answers
}

// add notes one more rule that has the query.
func (w *wanted) add(r events.MetricRule) {
	stale := r.StaleAfter.Std()
	if w.rule == "" {
		w.rule, w.query, w.interval, w.repeat = r.Name, r.Query, r.Interval.Std(), stale/2
	}
	w.good, w.repeat = max(w.good, stale), min(w.repeat, stale/2)
	w.points = w.points || r.Threshold != nil
}

// answered is what came of one query.
type answered struct {
	*asked
	at    time.Time
	value *float64
	err   error
}

// NewQueries makes no call.
func NewQueries(o QueryOptions) (*Queries, error) {
	if err := o.complete(); err != nil {
		return nil, fmt.Errorf("queries: %w", err)
	}
	return &Queries{o: o, log: o.Logger.With("cluster", o.Cluster), metrics: newQueryInstruments(), queries: map[string]*asked{}}, nil
}

// Run asks and publishes until ctx ends. Run it once.
func (q *Queries) Run(ctx context.Context) error {
	if err := q.metrics.register(q.o.Registerer, q.o.Cluster); err != nil {
		return fmt.Errorf("queries: register metrics: %w", err)
	}
	defer q.metrics.unregister()
	timer := q.o.Clock.NewTimer(never)
	defer timer.Stop()
	for ctx.Err() == nil {
		wait := q.step(ctx)
		timer.Reset(wait)
		select {
		case <-ctx.Done():
		case <-timer.C():
		}
	}
	return nil
}

// step does what is due and returns how long nothing is.
func (q *Queries) step(ctx context.Context) time.Duration {
	if now := q.o.Clock.Now(); !q.policyAt.After(now) {
		q.learn(ctx)
		q.policyAt = now.Add(q.o.PolicyEvery)
	}
	now := q.o.Clock.Now()
	var due []*asked
	for _, a := range q.queries {
		if !a.next.After(now) {
			due = append(due, a)
		}
	}
	slices.SortFunc(due, func(x, y *asked) int {
		return cmp.Or(cmp.Compare(x.rule, y.rule), cmp.Compare(x.digest, y.digest))
	})
	if len(due) > 0 {
		q.publish(ctx, q.ask(ctx, due))
	}
	now = q.o.Clock.Now()
	next := q.policyAt
	for _, a := range due {
		a.next = slot(q.o.Cluster, a.interval, now)
	}
	for _, a := range q.queries {
		next = earliest(next, a.next)
	}
	return max(next.Sub(now), time.Millisecond)
}

// slot is the next instant after now at which queries of an interval are asked.
func slot(cluster string, interval time.Duration, now time.Time) time.Time {
	interval = max(interval, time.Second)
	h := fnv.New64a()
	_, _ = h.Write([]byte(cluster)) // never fails
	offset := time.Duration(h.Sum64() % uint64(interval))
	since := now.Sub(time.Unix(0, 0).Add(offset))
	return now.Add(interval - since%interval)
}

// learn looks for other policies.
func (q *Queries) learn(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, q.o.PublishTimeout)
	defer cancel()
	policies, err := q.o.Policies.Policies(ctx)
	if err != nil && !q.noPolicy && ctx.Err() == nil {
		q.log.WarnContext(ctx, "a policy can't be read; the queries of those that can are asked, or of the last known ones", "err", err)
	}
	q.noPolicy = err != nil
	if len(policies) == 0 {
		return
	}
	all := map[string]wanted{}
	for _, p := range policies {
		for _, r := range p.MetricRules {
			if r.Query == "" {
				continue
			}
			digest := events.QueryDigest(r.Query, r.Interval)
			w := all[digest]
			w.digest = digest
			w.add(r)
			all[digest] = w
		}
	}
	for digest, w := range all {
		if a := q.queries[digest]; a != nil {
			a.wanted = w
			continue
		}
		q.queries[digest] = &asked{wanted: w, next: q.o.Clock.Now()} // decision waits for its answer
	}
	maps.DeleteFunc(q.queries, func(digest string, _ *asked) bool { _, is := all[digest]; return !is })
}

// ask sends the queries, some at a time, and waits for all of them.
func (q *Queries) ask(ctx context.Context, due []*asked) []answered {
	out := make([]answered, len(due))
	slots := make(chan struct{}, q.o.Parallel)
	var wg sync.WaitGroup
	for i, a := range due {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			out[i] = q.askOne(ctx, a)
		})
	}
	wg.Wait()
	return out
}

var errNoPrometheus = errors.New("the collector's configuration has no clusters[].prometheus")

func (q *Queries) askOne(ctx context.Context, a *asked) answered {
	out := answered{asked: a, at: q.o.Clock.Now().UTC(), err: errNoPrometheus}
	if q.o.Prometheus != nil {
		var v float64
		if v, out.err = q.o.Prometheus.Query(ctx, a.query); out.err == nil {
			out.value = &v
		}
		q.metrics.seconds.Observe(q.o.Clock.Since(out.at).Seconds())
	}
	result := "ok"
	if out.err != nil {
		result = "unknown"
	}
	q.metrics.queries.WithLabelValues(result).Inc()
	return out
}

// publish sends what decision has to know, all in one publication.
func (q *Queries) publish(ctx context.Context, all []answered) {
	if ctx.Err() != nil {
		return // an interrupted query says nothing about its metric
	}
	var es []events.Event
	var sent []answered
	for _, x := range all {
		q.say(ctx, x)
		if !x.isNews() {
			continue
		}
		e, err := q.event(x)
		if err != nil { // of a rule that came through the log: can't be
			q.log.ErrorContext(ctx, "answer to a query can't be published", "rule", x.rule, "err", err)
			continue
		}
		es, sent = append(es, e), append(sent, x)
	}
	if len(es) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, q.o.PublishTimeout)
	defer cancel()
	if err := q.o.Publisher.Publish(ctx, es...); err != nil {
		q.metrics.failures.Inc()
		if !q.unheard {
			q.unheard = true
			q.log.ErrorContext(ctx, "answers to queries could not be published; they are asked again, and their metrics become unknown meanwhile", "err", err)
		}
		return
	}
	if q.unheard {
		q.unheard = false
		q.log.InfoContext(ctx, "answers to queries are published again")
	}
	for _, x := range sent {
		x.toldAt, x.told = x.at, x.value
	}
}

// isNews says whether decision has to be told.
func (x answered) isNews() bool {
	switch {
	case x.toldAt.IsZero(), x.points:
		return true
	case (x.told == nil) != (x.value == nil), x.value != nil && *x.told != *x.value:
		return true
	}
	return !x.at.Before(x.toldAt.Add(x.repeat))
}

// say logs once that a query fails, and once that it does no more.
func (q *Queries) say(ctx context.Context, x answered) {
	switch {
	case x.err != nil && !x.failed:
		x.failed = true
		q.log.WarnContext(ctx, "metric is unknown: its query has no answer that counts; nothing is removed on account of it", "rule", x.rule, "query", x.query, "err", x.err)
	case x.err == nil && x.failed:
		x.failed = false
		q.log.InfoContext(ctx, "metric is known again", "rule", x.rule, "value", *x.value)
	}
}

func (q *Queries) event(x answered) (events.Event, error) {
	q.published++
	p := events.SignalReceived{Name: x.rule, Value: x.value, Source: events.SignalQueried, ObservedAt: x.at, ExpiresAt: x.at.Add(x.good),
		Query: x.digest, Epoch: q.o.Epoch}
	if x.err != nil {
		p.Reason = strings.ToValidUTF8(x.err.Error()[:min(len(x.err.Error()), maxReason)], "")
	}
	return events.New(events.Meta{Cluster: q.o.Cluster, Publisher: Role, Time: x.at,
		ID: events.ID("signal", q.o.Cluster, x.rule, strconv.FormatInt(q.o.Epoch, 10), strconv.FormatUint(q.published, 10), strconv.FormatInt(x.at.UnixNano(), 10))}, p)
}

// queryInstruments are the metrics of Queries.
type queryInstruments struct {
	queries  *prometheus.CounterVec
	failures prometheus.Counter
	seconds  prometheus.Histogram
	reg      prometheus.Registerer
}

func newQueryInstruments() *queryInstruments {
	return &queryInstruments{
		queries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "autoscaler_collector_queries_total",
			Help: "Queries of metric rules, by result (ok: a number, unknown: anything else).",
		}, []string{"result"}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "autoscaler_collector_signal_publish_failures_total",
			Help: "Publications of answers that the bus did not acknowledge.",
		}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "autoscaler_collector_query_seconds",
			Help:    "How long Prometheus takes to answer a query.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 14),
		}),
	}
}

func (m *queryInstruments) all() []prometheus.Collector {
	return []prometheus.Collector{m.queries, m.failures, m.seconds}
}

func (m *queryInstruments) register(reg prometheus.Registerer, cluster string) error {
	if reg == nil {
		return nil
	}
	m.reg = prometheus.WrapRegistererWith(prometheus.Labels{"cluster": cluster}, reg)
	for _, c := range m.all() {
		if err := m.reg.Register(c); err != nil {
			m.unregister()
			return err
		}
	}
	return nil
}

func (m *queryInstruments) unregister() {
	if m.reg == nil {
		return
	}
	for _, c := range m.all() {
		m.reg.Unregister(c)
	}
}
