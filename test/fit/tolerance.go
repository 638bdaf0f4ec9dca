package fit

import "math"

// surprise is how improbable a count has to be to say that a rate is exceeded: a run
// with fresh seeds in a thousand fails for nothing.
const surprise = 0.001

// Tolerated is how many of n may be wrong where a share of them may be: of many the
// share itself, of few as many more as chance alone brings about (a Poisson
// distribution). 150 cases promise some 400 pods a place; if one in a thousand has
// none, it is one in every third run, and two now and then.
func Tolerated(n int, share float64) int {
	const many = 5000
	expected := float64(n) * share
	if n >= many {
		return int(expected)
	}
	k, term := 0, math.Exp(-expected)
	for left := 1 - term; left > surprise; left -= term {
		k++
		term *= expected / float64(k)
	}
	return k
}
