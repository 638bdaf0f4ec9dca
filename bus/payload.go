package bus

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// The claim check: data that has no room in a message is an object of the payload
// bucket, and the event carries a reference and a digest in its place.
//
//	publish:  data ─► object <sha256 of the data> ─► message with ce-dataref, ce-datadigest, without a body
//	read:     message ─► object ─► digest compared ─► the event as it was published
//
// The object is there before the message, and lives longer than it. Its name
// derives from its content: whoever stores it twice, or in several processes at
// once, stores the same. Nobody replaces or removes a chunk that somebody reads.
// A process that is killed in between leaves chunks that nothing refers to, which
// go with their time.
//
// The layout is that of NATS object stores, so that every NATS client reads it.
// It is written and read here, because the client's own Put purges what an object
// of the same name held, under whoever reads that, and needs the right to; and its
// Get takes an object without its chunks for a server that is away.

const (
	payloadScheme = "nats-object:/" + payloadBucket + "/"
	digestPrefix  = "sha256:"
	// payloadChunk is the size of the parts of an object, in bytes.
	payloadChunk = 256 << 10
	// payloadAges is how many times the age of the stream of record an object may
	// reach: an event may wait in an outbox or as a dead letter before it is published.
	payloadAges = 2
)

// payloadConfig is the stream behind the payload bucket. Unlike that of an
// ordinary object store nobody can take anything back, by a header or a call. It
// is read from its leader, because a follower that lags takes a new object for
// one that is gone.
func (b *Bus) payloadConfig() jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:        PayloadStream,
		Description: "data of events of k3s-autoscaler that has no room in a message",
		Subjects:    []string{payloadChunks + ">", payloadInfos + ">"},
		Retention:   jetstream.LimitsPolicy,
		// As in the stream of record: a full bucket must not stop the present.
		Discard:     jetstream.DiscardOld,
		Storage:     jetstream.FileStorage,
		Replicas:    b.opts.Replicas,
		MaxAge:      payloadAges * b.opts.MaxAge,
		MaxBytes:    b.opts.MaxBytes,
		Duplicates:  min(duplicateWindow, b.opts.MaxAge),
		AllowRollup: false,
		DenyDelete:  true,
		DenyPurge:   true,
	}
}

// payloadError says why the data of an event can't be had. It never gets better.
type payloadError struct {
	ref string
	why string
}

func (e *payloadError) Error() string { return fmt.Sprintf("its data (%s) %s", e.ref, e.why) }

// claimed returns the object that stands in place of e's data; false: none does.
func claimed(e events.Event) (name string, ok bool) {
	if e.Context == nil || len(e.Data()) > 0 || events.Extension(e, events.ExtDataDigest) == "" {
		return "", false
	}
	return strings.CutPrefix(events.Extension(e, events.ExtDataRef), payloadScheme)
}

// claimable says why the data of e can't become an object.
func claimable(e events.Event) error {
	for _, ext := range []string{events.ExtDataRef, events.ExtDataDigest} {
		if v := events.Extension(e, ext); v != "" {
			return fmt.Errorf("event %s (%s): %w: its data has %d bytes and needs the extension %s, which is %q; expected it to be absent",
				e.ID(), e.Type(), ErrTooLarge, len(e.Data()), ext, clip(v, 200))
		}
	}
	return nil
}

// claim stores the data of e and returns e with a reference in its place.
func (b *Bus) claim(ctx context.Context, e events.Event) (events.Event, error) {
	if err := claimable(e); err != nil {
		return e, err
	}
	sum := sha256.Sum256(e.Data())
	name := hex.EncodeToString(sum[:])
	if err := b.storePayload(ctx, name, e.Data()); err != nil {
		return e, fmt.Errorf("store the data of event %s (%s, %d bytes): %w", e.ID(), e.Type(), len(e.Data()), err)
	}
	e = e.Clone()
	e.DataEncoded = nil
	e.SetExtension(events.ExtDataRef, payloadScheme+name)
	e.SetExtension(events.ExtDataDigest, digestPrefix+name)
	return e, nil
}

// redeem returns e with its data, as it was before claim. The error is a
// *payloadError when that is certainly not possible, now or later.
func (b *Bus) redeem(ctx context.Context, e events.Event) (events.Event, error) {
	name, ok := claimed(e)
	if !ok {
		return e, nil
	}
	ref, want := events.Extension(e, events.ExtDataRef), events.Extension(e, events.ExtDataDigest)
	data, err := b.loadPayload(ctx, ref, name)
	if err != nil {
		return e, err
	}
	if sum := sha256.Sum256(data); digestPrefix+hex.EncodeToString(sum[:]) != want {
		return e, &payloadError{ref, fmt.Sprintf("has the digest %s%x, the event says %s", digestPrefix, sum, want)}
	}
	e = e.Clone()
	e.DataEncoded = data
	e.SetExtension(events.ExtDataRef, nil)
	e.SetExtension(events.ExtDataDigest, nil)
	return e, nil
}

// keep makes sure that the object of an event that is about to be published lives
// as long as the event: it may have waited in an outbox. What is gone stays gone;
// whoever reads the event says so.
func (b *Bus) keep(ctx context.Context, e events.Event) error {
	name, ok := claimed(e)
	if !ok {
		return nil
	}
	if kept, err := b.payloadKept(ctx, name); err != nil || kept {
		return err
	}
	full, err := b.redeem(ctx, e)
	var lost *payloadError
	switch {
	case errors.As(err, &lost):
		b.metrics.failed("bus")
		b.opts.Logger.ErrorContext(ctx, "an event is published whose data is lost: it waited for too long, or the payload bucket is full",
			"event_id", e.ID(), "event_type", e.Type(), "error", lost)
		return nil
	case err != nil:
		return err
	}
	return b.storePayload(ctx, name, full.Data())
}

// payloadKept reports whether an object is there that is young enough to outlive
// a message that is published now.
func (b *Bus) payloadKept(ctx context.Context, name string) (bool, error) {
	_, m, err := b.payloadInfo(ctx, name)
	var odd *payloadError
	if errors.Is(err, jetstream.ErrMsgNotFound) || errors.As(err, &odd) {
		return false, nil
	}
	return err == nil && b.wire.Since(m.Time) < b.opts.MaxAge/2, err
}

// storePayload stores an object, unless it is there.
func (b *Bus) storePayload(ctx context.Context, name string, data []byte) error {
	if kept, err := b.payloadKept(ctx, name); err != nil || kept {
		return err
	}
	rest := zstdEncoder.EncodeAll(data, nil)
	info := jetstream.ObjectInfo{
		Bucket: payloadBucket, NUID: rand.Text(), Size: uint64(len(rest)), Digest: objectDigest(rest),
		ObjectMeta: jetstream.ObjectMeta{Name: name, Headers: nats.Header{headerEncoding: {encodingZstd}}},
	}
	for len(rest) > 0 {
		chunk := rest[:min(len(rest), payloadChunk)]
		if _, err := b.publishMsg(ctx, &nats.Msg{Subject: payloadChunks + info.NUID, Data: chunk}); err != nil {
			return err
		}
		b.opts.OnStep("payload/chunk/after")
		rest = rest[len(chunk):]
		info.Chunks++
	}
	raw, err := json.Marshal(info)
	if err != nil {
		return err
	}
	if _, err := b.publishMsg(ctx, &nats.Msg{Subject: payloadInfos + objectName(name), Data: raw}); err != nil {
		return err
	}
	b.opts.OnStep("payload/info/after")
	return nil
}

// loadPayload reads an object. One that is not there is looked for twice: what
// was acknowledged a moment ago may not have reached a new leader's answers.
func (b *Bus) loadPayload(ctx context.Context, ref, name string) ([]byte, error) {
	raw, err := b.readPayload(ctx, name)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		b.pause(ctx, b.opts.Times.BackoffMin)
		raw, err = b.readPayload(ctx, name)
	}
	var odd *payloadError
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound):
		return nil, &payloadError{ref, "is gone: the payload bucket does not hold it, or not all of it"}
	case errors.As(err, &odd):
		odd.ref = ref
		return nil, odd
	case err != nil:
		return nil, fmt.Errorf("read the data %s: %w", ref, err)
	}
	data, err := decompress(encodingZstd, raw)
	if err != nil {
		return nil, &payloadError{ref, "can't be read: " + err.Error()}
	}
	return data, nil
}

// readPayload reads what an object holds. The error is jetstream.ErrMsgNotFound
// when some of it is not there.
func (b *Bus) readPayload(ctx context.Context, name string) ([]byte, error) {
	info, _, err := b.payloadInfo(ctx, name)
	if err != nil {
		return nil, err
	}
	var raw bytes.Buffer
	for seq := uint64(0); uint64(raw.Len()) < info.Size; {
		m, err := b.payloadMsg(ctx, func(ctx context.Context, s jetstream.Stream) (*jetstream.RawStreamMsg, error) {
			return s.GetMsg(ctx, seq+1, jetstream.WithGetMsgSubject(payloadChunks+info.NUID))
		})
		if err != nil {
			return nil, err
		}
		seq = m.Sequence
		raw.Write(m.Data)
	}
	if got := objectDigest(raw.Bytes()); got != info.Digest {
		return nil, &payloadError{why: fmt.Sprintf("is stored with the digest %s, its object has %s", info.Digest, got)}
	}
	return raw.Bytes(), nil
}

// payloadInfo reads what is said about an object.
func (b *Bus) payloadInfo(ctx context.Context, name string) (info jetstream.ObjectInfo, m *jetstream.RawStreamMsg, err error) {
	m, err = b.payloadMsg(ctx, func(ctx context.Context, s jetstream.Stream) (*jetstream.RawStreamMsg, error) {
		return s.GetLastMsgForSubject(ctx, payloadInfos+objectName(name))
	})
	if err != nil {
		return info, nil, err
	}
	if err := json.Unmarshal(m.Data, &info); err != nil || info.NUID == "" || info.Deleted || info.Size > maxDecoded+payloadChunk {
		return info, m, &payloadError{why: fmt.Sprintf("is described by what is no object of at most %d bytes: %s", maxDecoded, clip(string(m.Data), 200))}
	}
	return info, m, nil
}

// payloadMsg makes one request to the leader of the bucket.
func (b *Bus) payloadMsg(ctx context.Context, get func(context.Context, jetstream.Stream) (*jetstream.RawStreamMsg, error)) (*jetstream.RawStreamMsg, error) {
	s, err := b.payloadStream(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := b.request(ctx, apiSubject("STREAM.MSG.GET", PayloadStream))
	defer cancel()
	m, err := get(ctx, s)
	if isMissing(err) {
		err = jetstream.ErrMsgNotFound
	}
	return m, unavailable(refusal(ctx, err))
}

// payloadStream opens the bucket, which is there once the bus is: a Reader finds it
// when it needs it.
func (b *Bus) payloadStream(ctx context.Context) (jetstream.Stream, error) {
	b.mu.Lock()
	s := b.payloads
	b.mu.Unlock()
	if s != nil {
		return s, nil
	}
	ctx, cancel := b.request(ctx, apiSubject("STREAM.INFO", PayloadStream))
	defer cancel()
	s, err := b.js.Stream(ctx, PayloadStream)
	if err != nil {
		return nil, fmt.Errorf("stream %s: %w", PayloadStream, unavailable(refusal(ctx, err)))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.payloads = s
	return s, nil
}

// objectName is a name as a subject token, and objectDigest a digest, as NATS
// object stores write them.
func objectName(name string) string { return base64.URLEncoding.EncodeToString([]byte(name)) }

func objectDigest(data []byte) string {
	h := sha256.New()
	h.Write(data)
	return jetstream.GetObjectDigestValue(h)
}
