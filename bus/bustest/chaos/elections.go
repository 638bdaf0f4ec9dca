//go:build unix

package chaos

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go"
)

// watchElections writes down that a stream or consumer of a cluster got another
// leader, also when no fault made it: servers that get no processor time for a
// while elect one another. A leader that was just elected may not know what the
// last one had delivered. The first leader of each is no news.
func (r *runner) watchElections() (stop func(), err error) {
	nc, err := nats.Connect(strings.Join(r.urls, ","), nats.IgnoreDiscoveredServers(), nats.MaxReconnects(-1))
	if err != nil {
		return nil, fmt.Errorf("watch elections: %w", err)
	}
	led := map[string]bool{}
	_, err = nc.Subscribe("$JS.EVENT.ADVISORY.*.LEADER_ELECTED.>", func(m *nats.Msg) {
		if !led[m.Subject] {
			led[m.Subject] = true
			return
		}
		var a struct {
			Leader string `json:"leader"`
		}
		_ = json.Unmarshal(m.Data, &a) // that there was one is enough
		what := strings.Join(strings.Split(m.Subject, ".")[5:], " ")
		r.log.Add(Line{What: WhatElected, Server: true, Note: fmt.Sprintf("%s leads %s", a.Leader, what)})
	})
	if err == nil {
		err = nc.Flush()
	}
	if err != nil {
		nc.Close()
		return nil, fmt.Errorf("watch elections: %w", err)
	}
	return nc.Close, nil
}
