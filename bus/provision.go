package bus

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// Metadata of the stream of record.
const (
	metaSchema      = "k3sas_schema"
	metaPartitions  = "k3sas_partitions"
	metaIncarnation = "k3sas_incarnation"
)

// duplicateWindow is how long JetStream recognises an event that is published
// again.
const duplicateWindow = 10 * time.Minute

func (b *Bus) recordConfig() jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:        StreamName,
		Description: "every event of k3s-autoscaler",
		Subjects:    []string{events.SubjectRoot + ".*." + nodeToken + ".*.>"},
		SubjectTransform: &jetstream.SubjectTransformConfig{
			Source:      events.SubjectRoot + ".*." + nodeToken + ".*.>",
			Destination: fmt.Sprintf("p.{{partition(%d,1,2)}}.%s.{{wildcard(1)}}.%s.{{wildcard(2)}}.>", Partitions, events.SubjectRoot, nodeToken),
		},
		Retention:   jetstream.LimitsPolicy,
		Discard:     jetstream.DiscardOld,
		Storage:     jetstream.FileStorage,
		Replicas:    b.opts.Replicas,
		MaxAge:      b.opts.MaxAge,
		MaxBytes:    b.opts.MaxBytes,
		Duplicates:  min(duplicateWindow, b.opts.MaxAge),
		AllowDirect: b.direct(),
		// What is recorded can't be taken back by a header or a call.
		AllowRollup: false,
		DenyDelete:  true,
		DenyPurge:   true,
		Metadata: map[string]string{
			metaSchema:      schemaVersion,
			metaPartitions:  strconv.Itoa(Partitions),
			metaIncarnation: b.opts.Clock.Now().UTC().Format("20060102T150405Z") + "-" + rand.Text()[:12],
		},
	}
}

func (b *Bus) timersConfig() jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:        TimersStream,
		Description: "armed timers of k3s-autoscaler, and what fired until it is relayed",
		Subjects:    []string{armedRoot + ".>", firedRoot + ".>"},
		Retention:   jetstream.LimitsPolicy,
		Discard:     jetstream.DiscardOld, // schedules are refused with DiscardNew
		Storage:     jetstream.FileStorage,
		Replicas:    b.opts.Replicas,
		// One timer for each handler and key.
		MaxMsgsPerSubject: 1,
		MaxBytes:          min(b.opts.MaxBytes, 64<<20),
		AllowMsgSchedules: true,
		// Schedules imply it; that is why timers have a stream of their own.
		AllowRollup: true,
	}
}

func (b *Bus) deadConfig() jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:        DeadLetterStream,
		Description: "events that a handler of k3s-autoscaler set aside",
		Subjects:    []string{deadRoot + ".>"},
		Retention:   jetstream.LimitsPolicy,
		Discard:     jetstream.DiscardNew, // a dead letter is never lost in silence
		Storage:     jetstream.FileStorage,
		Replicas:    b.opts.Replicas,
		MaxBytes:    min(b.opts.MaxBytes, 256<<20),
		Duplicates:  duplicateWindow,
	}
}

// bucketConfig is the stream behind the bucket of a handler, as NATS lays out a
// key-value bucket.
func (b *Bus) bucketConfig(handler string) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:              bucketStream(handler),
		Description:       "state of the handler " + handler,
		Subjects:          []string{bucketWrite(handler, ">")},
		Retention:         jetstream.LimitsPolicy,
		Discard:           jetstream.DiscardNew,
		Storage:           jetstream.FileStorage,
		Replicas:          b.opts.Replicas,
		MaxMsgsPerSubject: 1,
		MaxBytes:          -1,
		Duplicates:        2 * time.Minute,
		AllowRollup:       true,
		DenyDelete:        true,
		AllowDirect:       b.direct(),
	}
}

// direct says whether a stream may be read from every server that holds it. Only
// where that is one: others are a little late, and who reads from them does not
// see what was acknowledged to it. An owner would not find its own lease, nor a
// handler that the key of its message was parked.
func (b *Bus) direct() bool { return b.opts.Replicas == 1 }

// getSubject is where one message of a stream is asked for: the last one of a
// subject, or one by its sequence.
func (b *Bus) getSubject(stream string, subject ...string) string {
	if b.direct() {
		return apiSubject("DIRECT.GET", append([]string{stream}, subject...)...)
	}
	return apiSubject("STREAM.MSG.GET", stream)
}

// provision makes the streams that are absent, adapts the limits of those that
// exist, and refuses a stream of record that this version can't work with. A
// process for which everything is provisioned looks them up.
func (b *Bus) provision(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 4*b.opts.Times.Request)
	defer cancel()
	if err := b.admit(ctx); err != nil {
		return err
	}
	want := b.recordConfig()
	s, err := b.openStream(ctx, want)
	if err != nil {
		return err
	}
	if err := compatible(s.CachedInfo().Config, want); err != nil {
		return fmt.Errorf("stream %s: %w", StreamName, err)
	}
	b.stream = s
	b.incarn = s.CachedInfo().Config.Metadata[metaIncarnation]
	for _, c := range []jetstream.StreamConfig{b.timersConfig(), b.deadConfig(), b.payloadConfig()} {
		if _, err := b.openStream(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

func (b *Bus) openStream(ctx context.Context, want jetstream.StreamConfig) (jetstream.Stream, error) {
	if b.opts.Provisioned {
		return b.lookUpStream(ctx, want)
	}
	return b.ensureStream(ctx, want)
}

func (b *Bus) ensureStream(ctx context.Context, want jetstream.StreamConfig) (jetstream.Stream, error) {
	s, err := b.js.Stream(ctx, want.Name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		cctx, cancel := b.request(ctx, apiSubject("STREAM.CREATE", want.Name))
		defer cancel()
		s, err = b.js.CreateStream(cctx, want)
		err = refusal(cctx, err)
		if err == nil {
			b.opts.Logger.InfoContext(ctx, "stream created", "stream", want.Name,
				"replicas", want.Replicas, "max_age", want.MaxAge.String(), "max_bytes", want.MaxBytes)
			return s, nil
		}
		if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) { // another process was faster
			s, err = b.js.Stream(ctx, want.Name)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("stream %s: %w", want.Name, b.tooFew(err))
	}
	have := s.CachedInfo().Config
	if sameLimits(have, want) {
		return s, nil
	}
	// Only limits change; everything else is what the stream was made with.
	have.MaxAge, have.MaxBytes, have.Replicas, have.Duplicates = want.MaxAge, want.MaxBytes, want.Replicas, want.Duplicates
	have.AllowDirect = want.AllowDirect
	uctx, cancel := b.request(ctx, apiSubject("STREAM.UPDATE", want.Name))
	defer cancel()
	if s, err = b.js.UpdateStream(uctx, have); err != nil {
		return nil, fmt.Errorf("stream %s: change its limits: %w", want.Name, b.tooFew(refusal(uctx, err)))
	}
	b.opts.Logger.InfoContext(ctx, "stream limits changed", "stream", want.Name,
		"replicas", want.Replicas, "max_age", want.MaxAge.String(), "max_bytes", want.MaxBytes)
	return s, nil
}

func sameLimits(have, want jetstream.StreamConfig) bool {
	return have.MaxAge == want.MaxAge && have.MaxBytes == want.MaxBytes && have.Replicas == want.Replicas && have.AllowDirect == want.AllowDirect
}

// Errors of the server about replicas and room; nats.go has no names for them.
const (
	codeNoPeers      = 10005 // the cluster has too few servers that could take one
	codeNotClustered = 10074
	codeNoRoom       = 10047
)

// tooFew says what to do about replicas, or room, that the servers don't have.
func (b *Bus) tooFew(err error) error {
	var api *jetstream.APIError
	if !errors.As(err, &api) {
		return err
	}
	switch api.ErrorCode {
	case codeNotClustered:
		return fmt.Errorf("%w: replicas is %d, but the NATS server is alone: set bus.replicas to 1, or use a cluster of at least %d servers", err, b.opts.Replicas, b.opts.Replicas)
	case codeNoRoom:
		return fmt.Errorf("%w: the NATS server has not the room on disk that bus.max_bytes (%d) reserves, for the events and again for their large data: make room, or lower it", err, b.opts.MaxBytes)
	case codeNoPeers:
		return fmt.Errorf("%w: replicas is %d, but the NATS cluster has fewer servers with JetStream that can be reached and have room: start more of them, or lower bus.replicas", err, b.opts.Replicas)
	}
	return err
}

// compatible says in one error what keeps this version from using a stream.
func compatible(have, want jetstream.StreamConfig) error {
	var errs []error
	for _, m := range []string{metaSchema, metaPartitions} {
		if have.Metadata[m] != want.Metadata[m] {
			errs = append(errs, fmt.Errorf("metadata %s: is %q, this version needs %q", m, have.Metadata[m], want.Metadata[m]))
		}
	}
	if have.Metadata[metaIncarnation] == "" {
		errs = append(errs, fmt.Errorf("metadata %s: is missing", metaIncarnation))
	}
	if have.SubjectTransform == nil || *have.SubjectTransform != *want.SubjectTransform || !slices.Equal(have.Subjects, want.Subjects) {
		errs = append(errs, errors.New("subjects or their transform differ"))
	}
	if have.AllowRollup || !have.DenyDelete || !have.DenyPurge {
		errs = append(errs, errors.New("allows rollup, delete or purge: events could be taken back"))
	}
	if len(errs) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %w; use another NATS account or storage directory, or the version that made it", ErrIncompatible, errors.Join(errs...))
}

// consumerConfig is one durable of a handler.
func (b *Bus) consumerConfig(handler string, partition int, filters []string) jetstream.ConsumerConfig {
	return jetstream.ConsumerConfig{
		Durable:        consumerName(handler, partition),
		FilterSubjects: filters,
		DeliverPolicy:  jetstream.DeliverAllPolicy,
		AckPolicy:      jetstream.AckExplicitPolicy,
		AckWait:        b.opts.Times.AckWait,
		MaxAckPending:  1,  // order
		MaxDeliver:     -1, // the server's own limit skips a message in silence
		Replicas:       b.opts.Replicas,
		PriorityPolicy: jetstream.PriorityPolicyPrioritized,
		PriorityGroups: []string{pullGroup},
	}
}

// batchConfig is the durable of a batch handler.
func (b *Bus) batchConfig(handler string) jetstream.ConsumerConfig {
	return jetstream.ConsumerConfig{
		Durable:        handler,
		FilterSubject:  partPrefix + ".>",
		DeliverPolicy:  jetstream.DeliverAllPolicy,
		AckPolicy:      jetstream.AckAllPolicy,
		AckWait:        b.opts.Times.AckWait,
		MaxAckPending:  maxBatch,
		MaxDeliver:     -1,
		Replicas:       b.opts.Replicas,
		PriorityPolicy: jetstream.PriorityPolicyPinned,
		PriorityGroups: []string{pullGroup},
		PinnedTTL:      max(b.opts.Times.AckWait, time.Second),
	}
}

// relayConfig is the durable of the timer relay.
func (b *Bus) relayConfig() jetstream.ConsumerConfig {
	return jetstream.ConsumerConfig{
		Durable:       relayName,
		FilterSubject: firedRoot + ".>",
		AckPolicy:     jetstream.AckExplicitPolicy,
		AckWait:       b.opts.Times.AckWait,
		MaxDeliver:    -1,
		Replicas:      b.opts.Replicas,
	}
}

// openConsumer makes a durable, or takes the one that exists.
func (b *Bus) openConsumer(ctx context.Context, stream string, want jetstream.ConsumerConfig) (jetstream.Consumer, error) {
	if b.opts.Provisioned {
		return b.lookUpConsumer(ctx, stream, want)
	}
	subject := apiSubject("CONSUMER.CREATE", stream, want.Durable)
	if want.FilterSubject != "" {
		subject = apiSubject("CONSUMER.CREATE", stream, want.Durable, want.FilterSubject)
	}
	ctx, cancel := b.request(ctx, subject)
	defer cancel()
	c, err := b.js.CreateOrUpdateConsumer(ctx, stream, want)
	if err != nil {
		return nil, fmt.Errorf("consumer %s: %w", want.Durable, unavailable(b.tooFew(refusal(ctx, err))))
	}
	return c, nil
}

// openBucket opens the bucket of a handler, making it if absent. Where several
// processes do so at once, a server may not have heard yet of what another one has
// made, or may not answer about what is being made: they are asked again.
func (b *Bus) openBucket(ctx context.Context, handler string) (jetstream.KeyValue, error) {
	ctx, cancel := context.WithTimeout(ctx, 4*b.opts.Times.Request)
	defer cancel()
	for {
		kv, err := b.tryBucket(ctx, handler)
		again := errors.Is(err, jetstream.ErrBucketNotFound) || errors.Is(err, ErrUnavailable) && !errors.Is(err, ErrForbidden) && b.nc.IsConnected()
		if err == nil || !again || hopeless(err) {
			return kv, err
		}
		if b.pause(ctx, b.opts.Times.BackoffMin); ctx.Err() != nil {
			return nil, err
		}
	}
}

func (b *Bus) tryBucket(ctx context.Context, handler string) (jetstream.KeyValue, error) {
	want := b.bucketConfig(handler)
	ctx, cancel := b.request(ctx, apiSubject("STREAM.*", want.Name))
	defer cancel()
	if _, err := b.openStream(ctx, want); err != nil {
		return nil, unavailable(err)
	}
	kv, err := b.js.KeyValue(ctx, bucketName(handler))
	if err != nil {
		return nil, fmt.Errorf("bucket %s: %w", bucketName(handler), unavailable(refusal(ctx, err)))
	}
	return kv, nil
}
