package view

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/api"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/scaling"
)

// metrics are what the metric rules of a pool said when they were last read, by
// name. Should nobody have read them since, they are unknown.
func metrics(m Memory, pool string, now time.Time) []api.Metric {
	var out []api.Metric
	for _, r := range m.Rules.MetricRules {
		if r.Pool != pool {
			continue
		}
		x := api.Metric{Rule: r.Name, Source: r.Source(), Verdict: scaling.Unknown, Unknown: "it has not been read yet"}
		if st, ok := m.Core.MetricOf(r); ok {
			x.Value, x.MeasuredAt, x.Unknown, x.Nodes, x.Verdict, x.Since = st.Value, st.At, st.Unknown, st.Nodes, st.Verdict, st.Since
			if x.Unknown == "" && now.Sub(st.At) > r.StaleAfter {
				x.Verdict, x.Unknown = scaling.Unknown, fmt.Sprintf("its last value is older than %s", r.StaleAfter)
			}
		}
		out = append(out, x)
	}
	slices.SortFunc(out, func(a, b api.Metric) int { return strings.Compare(a.Rule, b.Rule) })
	return out
}
