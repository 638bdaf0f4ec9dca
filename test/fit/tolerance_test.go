package fit

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestOfFewMoreIsTolerated(t *testing.T) {
	t.Parallel()
	for n, want := range map[int]int{0: 0, 1: 0, 100: 2, 400: 3, 1999: 8, 5000: 5, 5400: 5} {
		require.Equal(t, want, Tolerated(n, 0.001), "of %d", n)
	}
}
