// Package chaos runs a bus with real servers and real processes, breaks them at
// random, and checks from the histories of all of them that the promises of
// package bus were kept.
//
// A Schedule follows from its seed: the topology (a server inside of a worker, a
// server of its own, a cluster of three), the load, and the faults with their
// times. Run runs it: servers and workers are children of the test binary, which
// starts itself and calls Child. Each writes what it does as Lines into one file;
// Check is a pure function of those, the stream of record, the records of the
// handlers, the dead letters and what the batch reader committed.
//
// What happens in a run depends on the scheduler of the machine, too: the seed
// repeats the faults, not every interleaving.
package chaos
