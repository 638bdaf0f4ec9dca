package events

import "slices"

// unbounded are the types whose data grows with the cluster or its configuration.
var unbounded = []string{TypeSnapshotCaptured, TypeSnapshotChanged, TypeDecisionCheckpointed, TypeConfigApplied, TypeShadowStarted}

// Unbounded reports whether the data of the type grows with the cluster or its
// configuration, so that it may have no room in a message: who publishes it may
// store data apart.
func (d Definition) Unbounded() bool { return slices.Contains(unbounded, d.Type) }
