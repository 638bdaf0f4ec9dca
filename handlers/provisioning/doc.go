// Package provisioning turns claims into nodes and drained nodes into nothing.
//
// It is a subscriber: claims, drains, and what the API server and the provider
// say arrive as events, and each changes the record of one node by a
// compare-and-swap together with the events it leads to. Whatever takes time
// (creating, starting, stopping, deleting) is done by a worker that holds a
// lease on the record, one step at a time:
//
//	intent (CAS) ─► effect ─► result (CAS, with its events)
//
// Between any two lines the process may die. The next owner finds the intent
// and repeats the step: a machine is found again by its name and claim, a
// deletion of what is gone is success, and an event's id is derived from the
// operation, so that nothing appears twice.
//
// At most one machine is ever started for a claim. The record says Starting
// before Start is called and after the lease was confirmed; a claim that died
// there looks at the machine first, and a machine that ended or vanished ends
// the claim instead of being started again.
//
// The reconcile sweep (Run) compares the provider, the API server and the
// records. It changes nothing but forgets records that have long been settled;
// it publishes node.diverged, and the worker acts on that after it has looked
// for itself. A machine or Node object without our claim is never touched.
package provisioning
