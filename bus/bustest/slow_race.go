//go:build race

package bustest

// slow is how much slower programs are: the race detector costs 5 to 15 times
// their processor time, but not the times of the protocol.
const slow = 4
