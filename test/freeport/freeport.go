// Package freeport finds TCP ports for servers that tests start, and start again.
package freeport

import (
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
)

// The ports are below those that Linux gives to whoever asks for any
// (net.ipv4.ip_local_port_range begins at 32768): nobody else gets one between the
// moment in which it was found free and the one in which its server listens, nor
// while a server is down.
const first, last = 20000, 30000

var given sync.Map // ports that this process was given before

// Take returns n different ports on loopback that nothing listens on.
func Take(n int) ([]int, error) {
	out := make([]int, 0, n)
	for range 100 * n {
		port := first + rand.IntN(last-first)
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			continue
		}
		_ = l.Close()
		if _, taken := given.LoadOrStore(port, true); taken {
			continue
		}
		if out = append(out, port); len(out) == n {
			return out, nil
		}
	}
	return nil, fmt.Errorf("find %d free ports from %d to %d: found %d", n, first, last, len(out))
}
