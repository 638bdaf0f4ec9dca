package bus_test

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/test/workload"
)

// corpus is what a cluster of so many nodes publishes in a quarter of an hour; 0
// nodes: the events about a node and decisions on it alone.
func corpus(b *testing.B, nodes int) []events.Event {
	b.Helper()
	if nodes == 0 {
		es, err := workload.Life(os.DirFS("../events/testdata"), "worker-1")
		require.NoError(b, err)
		return es
	}
	m, err := workload.New(b.Context(), nodes, time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC))
	require.NoError(b, err)
	es, err := m.Quarter()
	require.NoError(b, err)
	return es
}

// BenchmarkCompressFrom says for sizes from which data is compressed how many
// bytes an event has then and what that costs its writer and each of its readers.
func BenchmarkCompressFrom(b *testing.B) {
	for _, nodes := range []int{0, 10, 100, 1000} {
		es := corpus(b, nodes)
		for _, from := range []int{512, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 30} {
			b.Run(fmt.Sprintf("nodes=%d/from=%d", nodes, from), func(b *testing.B) {
				var stored, hit int
				var writing, reading time.Duration
				for b.Loop() {
					stored, hit = 0, 0
					for _, e := range es {
						begin := time.Now()
						data, packed := e.Data(), len(e.Data()) >= from
						if packed {
							data = bus.Compress(data)
							hit++
						}
						writing += time.Since(begin)
						stored += len(data)
						if packed {
							begin = time.Now()
							_, err := bus.Decompress(data)
							reading += time.Since(begin)
							require.NoError(b, err)
						}
					}
				}
				n := float64(b.N * len(es))
				b.ReportMetric(float64(stored)/float64(len(es)), "B/event")
				b.ReportMetric(float64(hit)/float64(len(es)), "compressed/event")
				b.ReportMetric(float64(writing.Nanoseconds())/n/1e3, "µs-writer/event")
				b.ReportMetric(float64(reading.Nanoseconds())/n/1e3, "µs-reader/event")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}
