// Package live compares the fit simulation with a real kube-scheduler, on a real
// API server with fake nodes: the random cases of test/fit, and removals of nodes
// whose pods have to find another place.
//
// A case has a cluster for itself, since the rules of spreading and of affinity look
// at all nodes there are; several control planes run side by side, and each takes one
// case after the other. Controllers are the real ones, but for what a kubelet and a
// provisioner of volumes would do; see steps.
package live
