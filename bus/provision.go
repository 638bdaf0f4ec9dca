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
		AllowDirect: true,
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
		AllowDirect: true,
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
		AllowDirect: true,
	}
}

// provision makes the streams that are absent, adapts the limits of those that
// exist, and refuses a stream of record that this version can't work with.
func (b *Bus) provision(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 4*b.opts.Times.Request)
	defer cancel()
	want := b.recordConfig()
	s, err := b.ensureStream(ctx, want)
	if err != nil {
		return err
	}
	if err := compatible(s.CachedInfo().Config, want); err != nil {
		return fmt.Errorf("stream %s: %w", StreamName, err)
	}
	b.stream = s
	b.incarn = s.CachedInfo().Config.Metadata[metaIncarnation]
	for _, c := range []jetstream.StreamConfig{b.timersConfig(), b.deadConfig()} {
		if _, err := b.ensureStream(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

func (b *Bus) ensureStream(ctx context.Context, want jetstream.StreamConfig) (jetstream.Stream, error) {
	s, err := b.js.Stream(ctx, want.Name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		s, err = b.js.CreateStream(ctx, want)
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
		return nil, fmt.Errorf("stream %s: %w", want.Name, err)
	}
	have := s.CachedInfo().Config
	if have.MaxAge == want.MaxAge && have.MaxBytes == want.MaxBytes && have.Replicas == want.Replicas {
		return s, nil
	}
	// Only limits change; everything else is what the stream was made with.
	have.MaxAge, have.MaxBytes, have.Replicas, have.Duplicates = want.MaxAge, want.MaxBytes, want.Replicas, want.Duplicates
	if s, err = b.js.UpdateStream(ctx, have); err != nil {
		return nil, fmt.Errorf("stream %s: change its limits: %w", want.Name, err)
	}
	b.opts.Logger.InfoContext(ctx, "stream limits changed", "stream", want.Name,
		"replicas", want.Replicas, "max_age", want.MaxAge.String(), "max_bytes", want.MaxBytes)
	return s, nil
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

// ensureConsumer makes one durable of a handler, or takes the one that exists.
func (b *Bus) ensureConsumer(ctx context.Context, handler string, partition int, filters []string) (jetstream.Consumer, error) {
	ctx, cancel := b.bound(ctx)
	defer cancel()
	c, err := b.stream.CreateOrUpdateConsumer(ctx, jetstream.ConsumerConfig{
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
	})
	if err != nil {
		return nil, fmt.Errorf("consumer %s: %w", consumerName(handler, partition), unavailable(err))
	}
	return c, nil
}

// ensureBucket opens the bucket of a handler, making it if absent.
func (b *Bus) ensureBucket(ctx context.Context, handler string) (jetstream.KeyValue, error) {
	ctx, cancel := b.bound(ctx)
	defer cancel()
	kv, err := b.js.KeyValue(ctx, bucketName(handler))
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		kv, err = b.js.CreateKeyValue(ctx, jetstream.KeyValueConfig{
			Bucket:      bucketName(handler),
			Description: "state of the handler " + handler,
			History:     1,
			Storage:     jetstream.FileStorage,
			Replicas:    b.opts.Replicas,
		})
		if errors.Is(err, jetstream.ErrBucketExists) {
			kv, err = b.js.KeyValue(ctx, bucketName(handler))
		}
	}
	if err != nil {
		return nil, fmt.Errorf("bucket %s: %w", bucketName(handler), unavailable(err))
	}
	return kv, nil
}
