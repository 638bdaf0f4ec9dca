package app

import (
	"context"
	"sync"
	"time"

	"k8s.io/utils/clock"
)

// Of what is known of a server's version: when it is asked again, and for how long it
// counts if that fails.
const (
	versionEvery = 15 * time.Second
	versionFor   = time.Minute
)

// serverVersion is the version of an API server: an agent is never newer. It is asked
// ahead of time, so that no machine waits for it. The answer may be up to versionFor
// old, which is less than a server and its agents take to come up: whoever moves a
// server to an older version has to stop it, and a machine that is created meanwhile
// would join it later just the same.
type serverVersion struct {
	ask   func(ctx context.Context) (string, error)
	clock clock.WithTicker

	mu      sync.Mutex
	version string
	at      time.Time // when it was asked
}

// get returns the version, asking for it if what is known is too old.
func (v *serverVersion) get(ctx context.Context) (string, error) {
	v.mu.Lock()
	version, at := v.version, v.at
	v.mu.Unlock()
	if version != "" && v.clock.Since(at) < versionFor {
		return version, nil
	}
	return v.refresh(ctx)
}

func (v *serverVersion) refresh(ctx context.Context) (string, error) {
	at := v.clock.Now()
	version, err := v.ask(ctx)
	if err != nil {
		return "", err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.version, v.at = version, at
	return version, nil
}

// run asks from time to time, until ctx ends. A server that does not answer is told of
// by who needs it.
func (v *serverVersion) run(ctx context.Context) error {
	tick := v.clock.NewTicker(versionEvery)
	defer tick.Stop()
	for {
		limit, cancel := context.WithTimeout(ctx, versionEvery)
		_, _ = v.refresh(limit)
		cancel()
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C():
		}
	}
}
