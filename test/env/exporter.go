package env

import (
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Exporter is a scrape target whose gauges a test sets, so that a rule of
// Prometheus fires or resolves.
type Exporter struct {
	// Address is its host:port, for MonitoringOptions.ScrapeTargets.
	Address string

	server *http.Server

	mu     sync.Mutex
	gauges map[string]map[string]float64 // by name, then by label set
}

// NewExporter serves /metrics on loopback in this process.
func NewExporter() (*Exporter, error) {
	listener, err := net.Listen("tcp", hostPort(loopback, 0))
	if err != nil {
		return nil, fmt.Errorf("serve metrics: %w", err)
	}
	x := &Exporter{Address: listener.Addr().String(), gauges: map[string]map[string]float64{}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4")
		x.write(w)
	})
	x.server = &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go func() { _ = x.server.Serve(listener) }() // ends with Close
	return x, nil
}

// Close ends the server.
func (x *Exporter) Close() error { return x.server.Close() }

// Set gives a gauge a value from the next scrape on. labels may be nil.
func (x *Exporter) Set(name string, labels map[string]string, value float64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.gauges[name] == nil {
		x.gauges[name] = map[string]float64{}
	}
	x.gauges[name][labelSet(labels)] = value
}

// Unset makes a gauge disappear, as when its source is gone.
func (x *Exporter) Unset(name string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.gauges, name)
}

func (x *Exporter) write(w io.Writer) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(x.gauges)) {
		fmt.Fprintf(w, "# TYPE %s gauge\n", name)
		for _, labels := range slices.Sorted(maps.Keys(x.gauges[name])) {
			fmt.Fprintf(w, "%s%s %s\n", name, labels, strconv.FormatFloat(x.gauges[name][labels], 'g', -1, 64))
		}
	}
}

func labelSet(labels map[string]string) string {
	if len(labels) == 0 {
		return ""
	}
	var pairs []string
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		pairs = append(pairs, fmt.Sprintf("%s=%q", key, labels[key]))
	}
	return "{" + strings.Join(pairs, ",") + "}"
}
