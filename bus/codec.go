package bus

import (
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/url"
	"slices"
	"strings"
	"sync"

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
	// compressFrom is the size in bytes from which data, or a record, is compressed:
	// what is smaller saves less than a tenth of its message, and what a node goes
	// through stays readable. See BenchmarkCompressFrom.
	compressFrom = 1 << 10
	// maxDecoded bounds the data of an event, in bytes: what a compressed message
	// or object may become.
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
// headers, data as the body (compressed from 1 KiB on), and the message id by
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
	if n := len(e.Data()); n > maxDecoded {
		return nil, fmt.Errorf("event %s (%s): %w: its data has %d bytes, at most %d", e.ID(), e.Type(), ErrTooLarge, n, maxDecoded)
	}
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
	err := attributes(e, func(name, v string) { m.Header[name] = []string{encodeValue(v)} })
	m.Data = e.Data()
	if len(m.Data) < compressFrom {
		return err
	}
	if small := zstdEncoder.EncodeAll(m.Data, nil); len(small) < len(m.Data) {
		m.Data, m.Header[headerEncoding] = small, []string{encodingZstd}
	}
	return err
}

// attributes calls set for each attribute that e has, under its header name.
func attributes(e events.Event, set func(name, v string)) error {
	some := func(name, v string) {
		if v != "" {
			set(name, v)
		}
	}
	some(headerPrefix+"specversion", e.SpecVersion())
	some(headerPrefix+"id", e.ID())
	some(headerPrefix+"source", e.Source())
	some(headerPrefix+"type", e.Type())
	some(headerPrefix+"subject", e.Subject())
	some(headerPrefix+"dataschema", e.DataSchema())
	if t := e.Time(); !t.IsZero() {
		set(headerPrefix+"time", types.FormatTime(t))
	}
	some(headerContentType, e.DataContentType())
	for name, v := range e.Extensions() {
		text, err := types.Format(v)
		if err != nil {
			return fmt.Errorf("extension %s: %w", name, err)
		}
		some(headerPrefix+name, text)
	}
	return nil
}

// DecodeEvent is the inverse of EncodeEvent. It also reads the structured mode.
// Header names are compared without case, as some clients canonicalise them.
func DecodeEvent(h nats.Header, data []byte) (events.Event, error) {
	var (
		ec          cloudevents.EventContextV1
		seen        = make([]string, 0, len(h)) // attributes, in lower case
		twice       []string
		errs        []error
		contentType string
		encoding    string
	)
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
			attr := lower[len(headerPrefix):]
			if len(vs) > 1 || slices.Contains(seen, attr) {
				twice = append(twice, lower)
				continue
			}
			seen = append(seen, attr)
			if err := setAttribute(&ec, attr, decodeValue(vs[0])); err != nil {
				errs = append(errs, fmt.Errorf("header %s: %w", lower, err))
			}
		}
	}
	if len(twice) > 0 {
		return events.Event{}, fmt.Errorf("header %s: has more than one value", slices.Min(twice))
	}
	data, err := decompress(encoding, data)
	if err != nil {
		return events.Event{}, err
	}
	if contentType != cloudevents.ApplicationJSON {
		if media, _, err := mime.ParseMediaType(contentType); err == nil && media == cloudevents.ApplicationCloudEventsJSON {
			return decodeStructured(data)
		}
	}
	if !slices.Contains(seen, "specversion") {
		return events.Event{}, errors.New("header ce-specversion: is missing")
	}
	return finish(&ec, contentType, data, errs)
}

func decompress(encoding string, data []byte) ([]byte, error) {
	switch encoding {
	case "":
		return data, nil
	case encodingZstd:
		data, err := zstdDecoder.DecodeAll(data, nil)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", headerEncoding, err)
		}
		return data, nil
	}
	return nil, fmt.Errorf("%s: is %q, expected %s or none", headerEncoding, encoding, encodingZstd)
}

func decodeStructured(data []byte) (events.Event, error) {
	var e events.Event
	if err := json.Unmarshal(data, &e); err != nil {
		return events.Event{}, fmt.Errorf("structured event: %w", err)
	}
	if err := validate(e); err != nil {
		return events.Event{}, fmt.Errorf("structured event: %w", err)
	}
	return e, nil
}

// finish makes an event of its attributes and data.
func finish(ec *cloudevents.EventContextV1, contentType string, data []byte, errs []error) (events.Event, error) {
	if contentType != "" {
		errs = append(errs, ec.SetDataContentType(contentType))
	}
	if err := errors.Join(errs...); err != nil {
		return events.Event{}, joinSorted(errs)
	}
	e := events.Event{Context: ec}
	if len(data) > 0 {
		e.DataEncoded = data
	}
	if err := validate(e); err != nil {
		return events.Event{}, err
	}
	return e, nil
}

func setAttribute(ec *cloudevents.EventContextV1, name, v string) error {
	switch name {
	case "specversion":
		if v != cloudevents.CloudEventsVersionV1 {
			return fmt.Errorf("is %q, expected %s", v, cloudevents.CloudEventsVersionV1)
		}
		return nil
	case "id":
		return ec.SetID(v)
	case "source":
		u, err := parseURL(v)
		if err == nil {
			ec.Source = types.URIRef{URL: u}
		}
		return err
	case "type":
		return ec.SetType(v)
	case "subject":
		return ec.SetSubject(v)
	case "dataschema":
		u, err := parseURL(v)
		if err == nil && v != "" {
			ec.DataSchema = &types.URI{URL: u}
		}
		return err
	case "datacontenttype":
		return errors.New("expected it as content-type")
	case "time":
		t, err := types.ParseTime(v)
		if err != nil {
			return err
		}
		return ec.SetTime(t)
	}
	if ec.Extensions == nil {
		ec.Extensions = make(map[string]any, 8)
	}
	switch name {
	case events.ExtPartitionKey, events.ExtCorrelationID, events.ExtCausationID, events.ExtTraceParent, events.ExtDryRun:
		ec.Extensions[name] = v // the names are good, and in almost every event
		return nil
	}
	return ec.SetExtension(name, v)
}

// urls remembers parsed sources and schemas: there are a few dozen, in every event.
var urls = struct {
	sync.RWMutex
	byText map[string]url.URL
}{byText: map[string]url.URL{}}

// maxURLs bounds what is remembered: a publisher may put anything there.
const maxURLs = 256

func parseURL(v string) (url.URL, error) {
	urls.RLock()
	u, known := urls.byText[v]
	urls.RUnlock()
	if known {
		return u, nil
	}
	p, err := url.Parse(strings.TrimSpace(v))
	if err != nil {
		return url.URL{}, err
	}
	urls.Lock()
	defer urls.Unlock()
	if len(urls.byText) < maxURLs {
		urls.byText[v] = *p
	}
	return *p, nil
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
