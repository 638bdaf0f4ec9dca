// Package env brings up the parts that the end-to-end tests run on, on one
// Linux machine and without any image registry: etcd, kube-apiserver,
// kube-controller-manager and kube-scheduler built from their Go modules, a
// Docker engine, an image that stands in for rancher/k3s, and on request
// Prometheus and Alertmanager from the distribution.
//
//	tests, product ──► admin door ──────────────► kube-apiserver ─► etcd
//	               └─► control door (Toxiproxy) ─►   ▲      ▲
//	                                                 │      └─ controller-manager, scheduler
//	k3s agent containers ─► node door (Toxiproxy on the bridge's gateway)
//
// The containers reach the API server only through the node door, and the
// kubeconfigs of the product only through the control door, so a test can cut
// either. Everything listens on loopback or on the bridge.
//
// Start attaches to an environment that is already up in the same state
// folder. The parts outlive the process that started them, so that several
// test binaries and a developer's shell can share one; Stop ends them, also
// those that a crashed run left. What is written lies in two folders: the state
// folder, which Stop removes, and the cache of binaries.
package env
