package bus

import (
	"sync"
)

// leftLeases are the leases that this process may hold without working under
// them: it could not give them back, or was never told that it got them, because
// the server was away. Others wait until they expire; their owner need not.
type leftLeases struct {
	mu    sync.Mutex
	byKey map[Key]holder // Until is zero where any will do
}

// given notes a lease of ours that nobody works under any more. Its epoch was
// nobody else's, ever.
func (l *leftLeases) given(k Key, owner string, epoch uint64) {
	l.note(k, holder{Owner: owner, Epoch: epoch})
}

// asked notes a lease whose taking was not acknowledged: it may be ours. If not,
// another attempt can have got its epoch, but not its end.
func (l *leftLeases) asked(k Key, h holder) { l.note(k, h) }

func (l *leftLeases) note(k Key, h holder) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.byKey == nil {
		l.byKey = map[Key]holder{}
	}
	l.byKey[k] = h
}

// forget is for who has taken the lease, or has seen that somebody else did.
func (l *leftLeases) forget(k Key) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.byKey, k)
}

// is reports whether h is the lease that was left of k.
func (l *leftLeases) is(k Key, h holder) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	left, ok := l.byKey[k]
	return ok && left.Owner == h.Owner && left.Epoch == h.Epoch && (left.Until.IsZero() || left.Until.Equal(h.Until))
}

// may reports whether a lease of this owner can be one that was left of k.
func (l *leftLeases) may(k Key, owner string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	left, ok := l.byKey[k]
	return ok && left.Owner == owner
}
