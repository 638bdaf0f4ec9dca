package collector_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/collector"
)

// prometheusOf answers queries with what the test says.
type prometheusOf struct {
	mu     sync.Mutex
	values map[string]float64
	errs   map[string]error
	takes  time.Duration
	asked  map[string][]time.Time
	now    int // queries under way
	most   int // at a time
}

func (p *prometheusOf) Query(ctx context.Context, q string) (float64, error) {
	p.mu.Lock()
	p.asked[q] = append(p.asked[q], time.Now())
	p.now++
	p.most = max(p.most, p.now)
	takes := p.takes
	p.mu.Unlock()
	select {
	case <-time.After(takes):
	case <-ctx.Done():
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.now--
	if err := errors.Join(ctx.Err(), p.errs[q]); err != nil {
		return 0, err
	}
	return p.values[q], nil
}

// when is when a query was asked.
func (p *prometheusOf) when(q string) []time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.asked[q])
}

// queries is how many different ones were asked.
func (p *prometheusOf) queries() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.asked)
}

func (p *prometheusOf) atATime() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.most
}

func (p *prometheusOf) set(change func(p *prometheusOf)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change(p)
}

// logOf is a log that can be read while it is written.
type logOf struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logOf) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logOf) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// policyOf are policies that the test can change.
type policyOf struct {
	mu       sync.Mutex
	policies []events.Policy
	err      error
}

func (p *policyOf) Policies(context.Context) ([]events.Policy, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.policies, p.err
}

// set makes these rules the policy in force, or its place unreadable.
func (p *policyOf) set(err error, rules ...events.MetricRule) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.policies, p.err = nil, err; err == nil {
		p.policies = []events.Policy{{MetricRules: rules}}
	}
}

// judge makes these rules a candidate policy, or its place unreadable.
func (p *policyOf) judge(err error, rules ...events.MetricRule) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.policies, p.err = p.policies[:1:1], err; err == nil {
		p.policies = append(p.policies, events.Policy{MetricRules: rules})
	}
}

// queryBundle is Queries on all of these, in a bubble of time.
type queryBundle struct {
	t      *testing.T
	prom   *prometheusOf
	policy *policyOf
	bus    *bus
	reg    *prometheus.Registry
	log    *logOf
	start  func()
	stop   func()
	read   int
}

func query(name string, seconds int) events.MetricRule {
	every := events.Duration(time.Duration(seconds) * time.Second)
	return events.MetricRule{Name: name, Pool: "a", Query: name + "()", Interval: every, StaleAfter: 4 * every, MayAdd: true, PassThrough: true}
}

func queries(t *testing.T, edit func(*collector.QueryOptions), rules ...events.MetricRule) *queryBundle {
	t.Helper()
	b := &queryBundle{t: t, prom: &prometheusOf{values: map[string]float64{}, errs: map[string]error{}, asked: map[string][]time.Time{}},
		policy: &policyOf{}, bus: &bus{ids: map[string]bool{}}, reg: prometheus.NewRegistry(), log: &logOf{}}
	b.policy.set(nil, rules...)
	o := collector.QueryOptions{Cluster: "home", Prometheus: b.prom, Policies: b.policy, Publisher: b.bus, Epoch: 3, Registerer: b.reg,
		Logger: slog.New(slog.NewTextHandler(b.log, nil))}
	if edit != nil {
		edit(&o)
	}
	q, err := collector.NewQueries(o)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	// It begins when the test lets time go by: what was set before counts from the start.
	b.start = sync.OnceFunc(func() { go func() { done <- q.Run(ctx) }() })
	b.stop = sync.OnceFunc(func() { b.start(); cancel(); require.NoError(t, <-done) })
	t.Cleanup(b.stop)
	return b
}

// after lets time go by and returns what was published meanwhile.
func (b *queryBundle) after(d time.Duration) []events.SignalReceived {
	b.t.Helper()
	b.start()
	time.Sleep(d)
	synctest.Wait()
	var out []events.SignalReceived
	all := b.bus.all()
	for _, s := range all[b.read:] {
		require.NoError(b.t, events.Check(s.event))
		p, err := events.Decode[events.SignalReceived](s.event)
		require.NoError(b.t, err)
		require.Equal(b.t, "home/_cluster", events.Extension(s.event, events.ExtPartitionKey))
		out = append(out, p)
	}
	b.read = len(all)
	return out
}

func TestAQueryIsAskedAtOnceAndThenAtItsInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := queries(t, nil, query("fast", 10), query("slow", 60), events.MetricRule{Name: "pushed", Pool: "a", Signal: "s"})
		b.prom.set(func(p *prometheusOf) { p.values["fast()"] = 1 })
		got := b.after(time.Millisecond)
		require.Len(t, got, 2, "decision waits for them")
		require.Equal(t, "fast", got[0].Name)
		require.Equal(t, events.SignalQueried, got[0].Source)
		require.Equal(t, int64(3), got[0].Epoch)
		require.Equal(t, events.QueryDigest("fast()", events.Duration(10*time.Second)), got[0].Query)
		require.Equal(t, got[0].ObservedAt.Add(40*time.Second), got[0].ExpiresAt)
		b.after(3 * time.Minute)
		b.stop()
		fast := b.prom.when("fast()")
		require.Len(t, fast, 19)
		for i := 2; i < len(fast); i++ {
			require.InDelta(t, 10, fast[i].Sub(fast[i-1]).Seconds(), 0.01)
		}
		require.Len(t, b.prom.when("slow()"), 4)
		require.Equal(t, 2, b.prom.queries(), "nothing is asked for a signal")
	})
}

func TestUnchangedValuesAreRepeatedOnlyBeforeTheyAreOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		points := query("points", 10)
		points.PassThrough, points.Threshold = false, &events.MetricThreshold{Points: 2, Of: 3}
		b := queries(t, nil, query("level", 10), points)
		count := func(got []events.SignalReceived) map[string]int {
			out := map[string]int{}
			for _, p := range got {
				out[p.Name]++
			}
			return out
		}
		b.after(15 * time.Second)
		got := count(b.after(10 * time.Minute))
		require.InDelta(t, 30, got["level"], 1, "every second one: half of the 40s after which it is stale")
		require.InDelta(t, 60, got["points"], 1, "each of them counts")
		b.prom.set(func(p *prometheusOf) { p.values["level()"] = 5 })
		require.Equal(t, 1, count(b.after(11 * time.Second))["level"], "a new value is said at once")
	})
}

func TestAFailureIsUnknownAtOnceCountedAndSaidOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := queries(t, nil, query("q", 10))
		b.prom.set(func(p *prometheusOf) { p.values["q()"] = 7 })
		require.InDelta(t, 7, *b.after(time.Second)[0].Value, 0)
		b.prom.set(func(p *prometheusOf) { p.errs["q()"] = errors.New("connection refused " + strings.Repeat("é", 400)) })
		got := b.after(10 * time.Second)
		require.Len(t, got, 1)
		require.Nil(t, got[0].Value)
		require.Contains(t, got[0].Reason, "connection refused")
		require.LessOrEqual(t, len(got[0].Reason), 400)
		b.after(time.Minute)
		require.Equal(t, 1, strings.Count(b.log.String(), "metric is unknown"))
		require.NoError(t, testutil.GatherAndCompare(b.reg, strings.NewReader(`# HELP autoscaler_collector_queries_total Queries of metric rules, by result (ok: a number, unknown: anything else).
# TYPE autoscaler_collector_queries_total counter
autoscaler_collector_queries_total{cluster="home",result="ok"} 1
autoscaler_collector_queries_total{cluster="home",result="unknown"} 7
`), "autoscaler_collector_queries_total"))
		b.prom.set(func(p *prometheusOf) { clear(p.errs) })
		got = b.after(10 * time.Second)
		require.InDelta(t, 7, *got[len(got)-1].Value, 0)
		require.Equal(t, 1, strings.Count(b.log.String(), "metric is known again"))
	})
}

func TestQueriesRunSomeAtATimeAndAreOnePublication(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var rules []events.MetricRule
		for i := range 10 {
			rules = append(rules, query(fmt.Sprint("q", i), 60))
		}
		b := queries(t, func(o *collector.QueryOptions) { o.Parallel = 3 })
		b.prom.set(func(p *prometheusOf) { p.takes = time.Second })
		b.policy.set(nil, rules...)
		require.Empty(t, b.after(3500*time.Millisecond), "the last of four rounds is under way")
		require.Len(t, b.after(2*time.Second), 10)
		require.Equal(t, 3, b.prom.atATime())
		all := b.bus.all()
		require.Equal(t, all[0].at, all[9].at)
	})
}

func TestThePolicyIsFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := queries(t, nil, query("old", 10), query("same", 10))
		b.after(time.Second)
		changed := query("same", 10)
		changed.Query = "other()"
		b.policy.set(nil, changed, query("new", 10))
		got := b.after(5 * time.Second)
		require.Len(t, got, 2, "asked as soon as they are known")
		require.Equal(t, events.QueryDigest("other()", changed.Interval), got[1].Query)
		was := len(b.prom.when("old()"))
		b.policy.set(errors.New("no bus"))
		require.NotEmpty(t, b.after(time.Minute), "those of the last known one are asked")
		require.Len(t, b.prom.when("old()"), was)
		require.Equal(t, 1, strings.Count(b.log.String(), "a policy can't be read"))
	})
}

func TestACandidatesQueriesAreAskedToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := queries(t, nil, query("both", 10), query("same-name", 10))
		b.after(time.Second)
		other, counts := query("same-name", 10), query("both", 10)
		other.Query = "other()"
		counts.PassThrough, counts.Threshold, counts.StaleAfter = false, &events.MetricThreshold{Points: 2, Of: 3}, events.Duration(time.Minute)
		b.policy.judge(nil, other, counts)
		got := b.after(60 * time.Second)
		asked := map[string]int{}
		for _, p := range got {
			asked[p.Query]++
			if p.Query == events.QueryDigest("both()", counts.Interval) {
				require.Equal(t, "both", p.Name)
			}
		}
		require.Len(t, b.prom.when("both()"), 7, "once for both policies")
		require.Len(t, b.prom.when("other()"), 7, "as soon as it is known, and then with the others")
		require.GreaterOrEqual(t, asked[events.QueryDigest("both()", counts.Interval)], 5, "a rule counts its answers")
		require.NotZero(t, asked[events.QueryDigest("other()", other.Interval)])
		last := got[len(got)-1]
		for _, p := range got {
			if p.Query == events.QueryDigest("both()", counts.Interval) {
				last = p
			}
		}
		require.Equal(t, last.ObservedAt.Add(time.Minute), last.ExpiresAt, "as long as it is of use to any rule")

		was := len(b.prom.when("other()"))
		b.policy.judge(errors.New("not permitted"))
		b.after(time.Minute)
		require.LessOrEqual(t, len(b.prom.when("other()")), was+1)
		require.Len(t, b.prom.when("both()"), 13, "those of the policy in force go on")
		require.Equal(t, 1, strings.Count(b.log.String(), "a policy can't be read"))
	})
}

func TestWhatTheBusDoesNotTakeIsSaidAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := queries(t, nil, query("q", 10))
		b.bus.set(func() (bool, error) { return false, errors.New("no answer") })
		b.prom.set(func(p *prometheusOf) { p.values["q()"] = 7 })
		require.Empty(t, b.after(35*time.Second))
		require.Equal(t, 1, strings.Count(b.log.String(), "could not be published"))
		b.bus.set(nil)
		require.Len(t, b.after(10*time.Second), 1)
		require.Equal(t, 1, strings.Count(b.log.String(), "are published again"))
	})
}

func TestWithoutAPrometheusEveryQueryIsUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := queries(t, func(o *collector.QueryOptions) { o.Prometheus = nil }, query("q", 10))
		got := b.after(time.Second)
		require.Nil(t, got[0].Value)
		require.Contains(t, got[0].Reason, "no clusters[].prometheus")
	})
}

func TestAnInterruptedQuerySaysNothingAboutItsMetric(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := queries(t, nil, query("q", 10))
		b.prom.set(func(p *prometheusOf) { p.takes = 5 * time.Second })
		b.after(16 * time.Second)
		b.stop()
		require.NotContains(t, b.log.String(), "metric is unknown")
		for _, p := range b.after(0) {
			require.NotNil(t, p.Value)
		}
	})
}

func TestQueriesNeedToKnowForWhomAndToWhom(t *testing.T) {
	t.Parallel()
	_, err := collector.NewQueries(collector.QueryOptions{Cluster: "Home!"})
	for _, part := range []string{"cluster: is", "policies is nil", "publisher is nil", "epoch is 0"} {
		require.ErrorContains(t, err, part)
	}
}
