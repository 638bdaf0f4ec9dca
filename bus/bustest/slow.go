//go:build !race

package bustest

const slow = 1
