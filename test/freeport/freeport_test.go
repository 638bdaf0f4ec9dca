package freeport

import (
	"net"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestPortsAreFreeAndDifferent(t *testing.T) {
	seen := map[int]bool{}
	for range 5 {
		ports, err := Take(20)
		require.NoError(t, err)
		require.Len(t, ports, 20)
		for _, p := range ports {
			require.False(t, seen[p], "given twice")
			seen[p] = true
			require.Less(t, p, 32768, "not one that anybody gets who asks for any")
			l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(p)))
			require.NoError(t, err)
			require.NoError(t, l.Close())
		}
	}
}
