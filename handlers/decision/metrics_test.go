package decision

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

func (b *testBundle) signal(name string, value *float64, query string) {
	b.t.Helper()
	p := events.SignalReceived{Name: name, Value: value, ObservedAt: b.now, ExpiresAt: b.now.Add(time.Hour)}
	if query != "" {
		p.Source, p.Query, p.Epoch = events.SignalQueried, events.QueryDigest(query, events.Duration(time.Minute)), 1
		if value == nil {
			p.Reason = "connection refused"
		}
	}
	b.publish(p)
}

func TestSignalsArePartOfADecisionAndOfTheCheckpoint(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	minute := events.Duration(time.Minute)
	b.configure(func(c *events.ConfigApplied) {
		c.Policy.MetricRules = []events.MetricRule{
			{Name: "queue", Pool: "a", Query: "sum(queue)", Interval: minute, StaleAfter: 5 * minute, MayAdd: true, MayRemove: true, TargetValue: &events.TargetValue{Target: 10, DeadBand: 0.01}},
			{Name: "points", Pool: "a", Signal: "pushed", StaleAfter: 5 * minute, MayAdd: true, Threshold: &events.MetricThreshold{AtLeast: new(5.0), Points: 2, Of: 3, Delta: new(1)}},
			{Name: "cpu", Pool: "a", Metric: "cpu-usage", Interval: minute, StaleAfter: minute, MayAdd: true, PassThrough: true},
			{Name: "fixed", Pool: "a", Signal: "pushed", StaleAfter: 5 * minute, MayAdd: true, Fixed: new(0)}}
	})
	b.node("a-1")
	b.objects.Usage = []events.SnapshotUsage{{Node: "a-1", CPUMilli: 500, At: b.now}}
	full := b.full()
	full.Freshness[events.KindUsage] = b.now
	b.publish(full)
	held := payloads[events.ScaleHeld](b)
	require.Equal(t, "MetricUnknown", held[len(held)-1].Reason.Code)

	b.signal("queue", new(30.0), "another query")
	require.Empty(t, payloads[events.NodeClaimed](b))
	b.now = b.now.Add(time.Second)
	b.signal("queue", new(30.0), "sum(queue)")
	require.Len(t, payloads[events.NodeClaimed](b), 2, "ceil(1 × 30 / 10) are three")
	up := payloads[events.ScaleupDecided](b)[0]
	require.Equal(t, "Metric", up.Reason.Code)
	require.Equal(t, b.now, up.TriggerSince, "the need is as old as the value")
	rules := map[string]events.RuleResult{}
	for _, r := range up.Rules {
		rules[r.Rule] = r
	}
	require.Equal(t, "30", rules["metric queue"].Value)
	require.Equal(t, "target 10", rules["metric queue"].Threshold)
	require.Equal(t, 2, rules["metric queue"].Delta)
	require.Equal(t, "0.5", rules["metric cpu"].Value)
	require.Equal(t, "unknown", rules["metric points"].Verdict)

	b.signal("pushed", new(7.0), "")
	b.now = b.now.Add(time.Second)
	b.signal("pushed", new(7.0), "")
	b.signal("queue", nil, "sum(queue)")
	b.publish(b.full())
	var rec Record
	cs := payloads[events.DecisionCheckpointed](b)
	require.NoError(t, json.Unmarshal(cs[len(cs)-1].State, &rec))
	require.Len(t, rec.Core.Metrics["points"].Points, 2)
	require.Equal(t, "connection refused", rec.Core.Metrics["queue"].Unknown)
	require.Equal(t, 3, *rec.Core.Metrics["queue"].Nodes, "what it last asked for")
	require.Equal(t, rec.Core.Digest(), cs[len(cs)-1].StateDigest)
}
