package bus

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// Actions of Provision.
const (
	ActionCreated   = "created"
	ActionUpdated   = "updated"
	ActionUnchanged = "unchanged"
)

// Provisioned is one thing that Provision looked after.
type Provisioned struct {
	Kind   string `json:"kind"` // stream, consumer or bucket
	Name   string `json:"name"`
	Action string `json:"action"`
}

// Provision makes every stream, consumer and bucket that processes with the given
// access need, and changes those that are there to what this version needs. It
// takes a credential that may use the whole JetStream API. It never deletes, and
// may run while processes work. Servers that don't answer yet it asks again, for a
// minute with the default times. What was done before an error is returned with it.
func Provision(ctx context.Context, o Options, everyone []Access) ([]Provisioned, error) {
	o.Provisioned = false
	b, err := dial(o)
	if err != nil {
		return nil, err
	}
	defer b.nc.Close()
	p := &provisioner{b: b}
	ctx, cancel := context.WithTimeout(ctx, provisionRequests*b.opts.Times.Request)
	defer cancel()
	_ = b.persist(ctx, "the servers", func() error { // it says that something could not start
		if ctx.Err() != nil {
			return ctx.Err() // the last answer says more
		}
		if err = p.all(ctx, everyone); hopeless(err) {
			return nil
		}
		return err
	})
	if err != nil {
		return p.done, fmt.Errorf("provision the bus: %w", unavailable(err))
	}
	return p.done, nil
}

// hopeless reports whether a server has answered what no waiting changes, though it
// calls it a failure of its own.
func hopeless(err error) bool {
	var api *jetstream.APIError
	return errors.As(err, &api) && (api.ErrorCode == codeNotClustered || api.ErrorCode == codeNoRoom)
}

// provisionRequests is for how many times the longest duration of a request
// Provision asks servers that don't answer.
const provisionRequests = 12

type provisioner struct {
	b    *Bus
	done []Provisioned
}

// all is the list of what there is; see PermissionsFor for who may use what.
func (p *provisioner) all(ctx context.Context, everyone []Access) error {
	record := p.b.recordConfig()
	s, err := p.stream(ctx, "stream", StreamName, record)
	if err != nil {
		return err
	}
	if err := compatible(s.CachedInfo().Config, record); err != nil {
		return fmt.Errorf("stream %s: %w", StreamName, err)
	}
	for _, c := range []jetstream.StreamConfig{p.b.timersConfig(), p.b.deadConfig(), p.b.payloadConfig()} {
		if _, err := p.stream(ctx, "stream", c.Name, c); err != nil {
			return err
		}
	}
	for _, a := range everyone {
		if err := p.access(ctx, a); err != nil {
			return err
		}
	}
	return nil
}

func (p *provisioner) access(ctx context.Context, a Access) error {
	if name := a.bucket(); name != "" {
		if _, err := p.stream(ctx, "bucket", bucketName(name), p.b.bucketConfig(name)); err != nil {
			return err
		}
	}
	if a.Timers {
		if err := p.consumer(ctx, TimersStream, p.b.relayConfig()); err != nil {
			return err
		}
	}
	if a.Handler == "" {
		return nil
	}
	if a.Batch {
		return p.consumer(ctx, StreamName, p.b.batchConfig(a.Handler))
	}
	sub, err := NewSubscriber(p.b, SubscriberOptions{Handler: a.Handler, Suffixes: events.Suffixes(a.Handler)})
	if err != nil {
		return err
	}
	for _, c := range sub.configs() {
		if err := p.consumer(ctx, StreamName, c); err != nil {
			return err
		}
	}
	return nil
}

// note records what was done; before is nil when there was nothing.
func (p *provisioner) note(kind, name string, before, after any) {
	action := ActionUnchanged
	switch {
	case before == nil:
		action = ActionCreated
	case !reflect.DeepEqual(before, after):
		action = ActionUpdated
	}
	if slices.ContainsFunc(p.done, func(d Provisioned) bool { return d.Kind == kind && d.Name == name }) {
		return // by an attempt that ended with something else
	}
	p.done = append(p.done, Provisioned{Kind: kind, Name: name, Action: action})
}

// stream looks after a stream, which is known to people as a kind with a name.
func (p *provisioner) stream(ctx context.Context, kind, name string, want jetstream.StreamConfig) (jetstream.Stream, error) {
	before, err := p.streamConfig(ctx, want.Name)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 4*p.b.opts.Times.Request)
	defer cancel()
	s, err := p.b.ensureStream(ctx, want)
	if err != nil {
		return nil, err
	}
	p.note(kind, name, before, s.CachedInfo().Config)
	return s, nil
}

// streamConfig is the configuration of a stream as it is, nil if there is none.
func (p *provisioner) streamConfig(ctx context.Context, name string) (any, error) {
	ctx, cancel := p.b.request(ctx, apiSubject("STREAM.INFO", name))
	defer cancel()
	s, err := p.b.js.Stream(ctx, name)
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("stream %s: %w", name, refusal(ctx, err))
	}
	return s.CachedInfo().Config, nil
}

func (p *provisioner) consumer(ctx context.Context, stream string, want jetstream.ConsumerConfig) error {
	var before any
	rctx, cancel := p.b.request(ctx, apiSubject("CONSUMER.INFO", stream, want.Durable))
	defer cancel()
	c, err := p.b.js.Consumer(rctx, stream, want.Durable)
	if err == nil {
		before = c.CachedInfo().Config
	} else if !errors.Is(err, jetstream.ErrConsumerNotFound) {
		return fmt.Errorf("consumer %s: %w", want.Durable, refusal(rctx, err))
	}
	if c, err = p.b.openConsumer(ctx, stream, want); err != nil {
		return err
	}
	p.note("consumer", stream+"/"+want.Durable, before, c.CachedInfo().Config)
	return nil
}
