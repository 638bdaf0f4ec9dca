package backtest

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// BenchmarkAnHourOf100Nodes is an hour of a cluster of 100 nodes and 1,500 pods, with a
// snapshot every ten seconds and a pod that comes and goes with each third: 168 of it
// are a week.
func BenchmarkAnHourOf100Nodes(b *testing.B) {
	large := policy(func(p *events.Policy) { p.Pools[0].Max = 200 })
	s := begin(b, large, func(s *story) {
		for i := range 100 {
			s.node(fmt.Sprintf("n%03d", i), noon.Add(-time.Hour))
			for j := range 15 {
				s.pod(fmt.Sprintf("n%03d-%02d", i, j), fmt.Sprintf("n%03d", i), 60)
			}
		}
	})
	for i := range 360 {
		if i%3 == 0 {
			s.pod(fmt.Sprint("job-", i), "", 300)
			if i > 30 {
				s.end(fmt.Sprint("job-", i-30))
			}
		}
		s.until(noon.Add(time.Duration(i+1) * every))
	}
	o := Options{Log: s.log, Policies: map[string]Policy{home: {Digest: "new", Policy: large}}}
	b.ResetTimer()
	for range b.N {
		_, err := Run(b.Context(), o)
		require.NoError(b, err)
	}
}
