// Package externalgrpc creates nodes through a provider that speaks the
// externalgrpc protocol of the Cluster Autoscaler (protos/externalgrpc.proto):
// existing providers work with it as they are.
//
// The protocol knows groups of like nodes with a target size, and no claims,
// names or requests with an id. A claim is turned into one machine so:
//
//	Create   the claim is written into the ledger; nothing is asked for
//	Start    the target size is raised by one for it, at most once
//	         an instance turns up that nobody has ──► it is the claim's
//	         its Node object registers ──► Named, by whoever sees it
//	Stop     NodeGroupDeleteNodes, or a lower target if no instance came
//	Delete   the claim leaves the ledger when the instance is gone
//
// Instances of a group are all alike, so which claim gets which one does not
// matter; that each claim gets one at most does. Two things see to it. Calls that
// change the target are made one at a time for a group, by however many
// processes, and the target size to be reached is written down before. A call
// whose reply is lost is never made again: the target size tells later whether
// it was carried out, and until then its claims count as started.
//
// An instance that was there before, or that comes while no claim waits for one,
// belongs to somebody else: it is never given to a claim, and never deleted.
package externalgrpc
