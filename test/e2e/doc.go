// Package e2e runs the product as its users do: the binary as a process,
// against a real API server and scheduler, a real Docker engine, real
// Prometheus and Alertmanager and real JetStream. The tests carry the build tag
// e2e; `make e2e` builds and starts what they need.
package e2e
