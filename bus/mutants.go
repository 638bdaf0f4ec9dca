package bus

// broken are rules of this package that its tests break on purpose, in processes
// of their own, to prove that the checker of histories notices. Nothing outside
// of tests sets them.
var broken struct {
	fence  bool // a message is ours for ever: late acknowledgements are sent
	lease  bool // whoever asks has the lease
	cas    bool // records are written without their revision
	outbox bool // a redelivery does not publish what its message led to
	copyID bool // a redriven copy has the message id of the event that it is a copy of
}
