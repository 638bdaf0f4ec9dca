// Command fit answers what kube-scheduler would do with a cluster, by the
// scheduler's own framework with its default plugins and without an API server.
//
// It reads one question a line from standard input and writes one answer a line
// to standard output, both in JSON, in the same order; see question and answer.
// Each question carries the whole cluster: nothing is kept between two of them.
package main
