package bus

import (
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/url"
	"strings"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"github.com/cloudevents/sdk-go/v2/types"
	"github.com/klauspost/compress/zstd"
	"github.com/nats-io/nats.go"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// Headers of an event in the binary mode of the CloudEvents NATS binding.
const (
	headerPrefix      = "ce-"
	headerContentType = "content-type"
	headerEncoding    = "content-encoding"
	encodingZstd      = "zstd"
	headerMsgID       = "Nats-Msg-Id"
)

const (
	// compressFrom is the size in bytes from which data is compressed.
	compressFrom = 256 << 10
	// maxDecoded bounds what a compressed message may become, in bytes.
	maxDecoded = 64 << 20
)

var (
	zstdEncoder, _ = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	zstdDecoder, _ = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxDecoded))
)

// UndecodableError says why a stored message is no event. It never gets better.
type UndecodableError struct {
	Sequence uint64 // in the stream of record, 0 when unknown
	Subject  string
	Err      error
}

func (e *UndecodableError) Error() string {
	return fmt.Sprintf("message %d on %s is no event: %v", e.Sequence, e.Subject, e.Err)
}
func (e *UndecodableError) Unwrap() error { return e.Err }

// EncodeEvent returns e as a NATS message for its subject: attributes as "ce-"
// headers, data as the body (compressed from 256 KiB on), and the message id by
// which JetStream recognises a second publication. Attribute values are
// percent-encoded where NATS would change them.
func EncodeEvent(e events.Event) (*nats.Msg, error) {
	if err := e.Validate(); err != nil {
		return nil, fmt.Errorf("event %s: %w", e.ID(), err)
	}
	subject, err := events.Subject(e)
	if err != nil {
		return nil, fmt.Errorf("event %s: %w", e.ID(), err)
	}
	m := &nats.Msg{Subject: subject, Header: make(nats.Header, 16)}
	if err := encodeInto(m, e); err != nil {
		return nil, fmt.Errorf("event %s: %w", e.ID(), err)
	}
	m.Header[headerMsgID] = []string{MessageID(e)}
	return m, nil
}

// MessageID is what JetStream deduplicates e by: the pair of source and id is
// unique.
func MessageID(e events.Event) string { return events.ID(e.Source(), e.ID()) }

func encodeInto(m *nats.Msg, e events.Event) error {
	set := func(name, v string) {
		if v != "" {
			m.Header[name] = []string{encodeValue(v)}
		}
	}
	set(headerPrefix+"specversion", e.SpecVersion())
	set(headerPrefix+"id", e.ID())
	set(headerPrefix+"source", e.Source())
	set(headerPrefix+"type", e.Type())
	set(headerPrefix+"subject", e.Subject())
	set(headerPrefix+"dataschema", e.DataSchema())
	if t := e.Time(); !t.IsZero() {
		set(headerPrefix+"time", types.FormatTime(t))
	}
	for name, v := range e.Extensions() {
		text, err := types.Format(v)
		if err != nil {
			return fmt.Errorf("extension %s: %w", name, err)
		}
		set(headerPrefix+name, text)
	}
	set(headerContentType, e.DataContentType())
	m.Data = e.Data()
	if len(m.Data) >= compressFrom {
		m.Data = zstdEncoder.EncodeAll(m.Data, nil)
		m.Header[headerEncoding] = []string{encodingZstd}
	}
	return nil
}

// DecodeEvent is the inverse of EncodeEvent. It also reads the structured mode.
// Header names are compared without case, as some clients canonicalise them.
func DecodeEvent(h nats.Header, data []byte) (events.Event, error) {
	var err error
	contentType := ""
	attrs := make(map[string]string, len(h))
	encoding := ""
	for name, vs := range h {
		if len(vs) == 0 {
			continue
		}
		switch lower := strings.ToLower(name); {
		case lower == headerContentType:
			contentType = decodeValue(vs[0])
		case lower == headerEncoding:
			encoding = vs[0]
		case strings.HasPrefix(lower, headerPrefix):
			if _, twice := attrs[lower[len(headerPrefix):]]; twice || len(vs) > 1 {
				return events.Event{}, fmt.Errorf("header %s: has more than one value", name)
			}
			attrs[lower[len(headerPrefix):]] = decodeValue(vs[0])
		}
	}
	switch encoding {
	case "":
	case encodingZstd:
		if data, err = zstdDecoder.DecodeAll(data, nil); err != nil {
			return events.Event{}, fmt.Errorf("%s: %w", headerEncoding, err)
		}
	default:
		return events.Event{}, fmt.Errorf("%s: is %q, expected %s or none", headerEncoding, encoding, encodingZstd)
	}
	if media, _, err := mime.ParseMediaType(contentType); err == nil && media == cloudevents.ApplicationCloudEventsJSON {
		return decodeStructured(data)
	}
	return decodeBinary(attrs, contentType, data)
}

func decodeStructured(data []byte) (events.Event, error) {
	var e events.Event
	if err := json.Unmarshal(data, &e); err != nil {
		return events.Event{}, fmt.Errorf("structured event: %w", err)
	}
	if err := e.Validate(); err != nil {
		return events.Event{}, fmt.Errorf("structured event: %w", err)
	}
	return e, nil
}

func decodeBinary(attrs map[string]string, contentType string, data []byte) (events.Event, error) {
	version, ok := attrs["specversion"]
	if !ok {
		return events.Event{}, errors.New("header ce-specversion: is missing")
	}
	if version != cloudevents.CloudEventsVersionV1 {
		return events.Event{}, fmt.Errorf("header ce-specversion: is %q, expected %s", version, cloudevents.CloudEventsVersionV1)
	}
	e := cloudevents.New(version)
	var errs []error
	for name, v := range attrs {
		if err := setAttribute(&e, name, v); err != nil {
			errs = append(errs, fmt.Errorf("header %s%s: %w", headerPrefix, name, err))
		}
	}
	if contentType != "" {
		errs = append(errs, e.Context.SetDataContentType(contentType))
	}
	if err := errors.Join(errs...); err != nil {
		return events.Event{}, err
	}
	if len(data) > 0 {
		e.DataEncoded = data
	}
	if err := e.Validate(); err != nil {
		return events.Event{}, err
	}
	return e, nil
}

func setAttribute(e *events.Event, name, v string) error {
	switch name {
	case "specversion":
		return nil
	case "id":
		return e.Context.SetID(v)
	case "source":
		return e.Context.SetSource(v)
	case "type":
		return e.Context.SetType(v)
	case "subject":
		return e.Context.SetSubject(v)
	case "dataschema":
		return e.Context.SetDataSchema(v)
	case "datacontenttype":
		return errors.New("expected it as content-type")
	case "time":
		t, err := types.ParseTime(v)
		if err != nil {
			return err
		}
		return e.Context.SetTime(t)
	}
	return e.Context.SetExtension(name, v)
}

const upperHex = "0123456789ABCDEF"

// encodeValue makes v safe as a header value: NATS cuts values at line breaks
// and drops blanks at their ends without an error. '%' is encoded too, so that
// decodeValue is the exact inverse.
func encodeValue(v string) string {
	plain := func(i int) bool {
		c := v[i]
		switch {
		case c == '%' || c < ' ' || c == 0x7f:
			return false
		case c == ' ':
			return i > 0 && i < len(v)-1
		case c >= 0x80:
			// Blanks beyond ASCII are trimmed at the ends as well.
			return i > 3 && i < len(v)-4
		}
		return true
	}
	for i := range len(v) {
		if !plain(i) {
			var b strings.Builder
			for i := range len(v) {
				if plain(i) {
					b.WriteByte(v[i])
				} else {
					b.Write([]byte{'%', upperHex[v[i]>>4], upperHex[v[i]&15]})
				}
			}
			return b.String()
		}
	}
	return v
}

// decodeValue undoes percent-encoding. A value that is none, of a publisher that
// doesn't encode, is taken as it is.
func decodeValue(v string) string {
	if !strings.Contains(v, "%") {
		return v
	}
	if d, err := url.PathUnescape(v); err == nil {
		return d
	}
	return v
}
