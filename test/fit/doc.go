// Package fit compares what internal/scaling says of pods and nodes with what
// kube-scheduler's own framework says of them, on random clusters.
//
// A Case is a cluster with pods that wait and the pools that may grow. Generate
// makes one of a seed. Decide runs it through the collector's conversion, the
// fold of snapshots, decision's translation and the evaluation; Scheduler asks
// test/env/k8s/fit, a program of its own module, so that the product does not
// depend on k8s.io/kubernetes.
package fit
