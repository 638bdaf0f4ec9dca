package bus_test

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/v2/binding"
	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"
	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/bustest"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// odd returns an event of a third party with the given attribute values.
func odd(id, source, subject, ext string, data []byte) events.Event {
	e := cloudevents.New("1.0")
	e.SetType(events.TypeNodeObserved)
	e.SetExtension(events.ExtPartitionKey, "home/n1")
	_ = e.Context.SetID(id)
	_ = e.Context.SetSource(source)
	_ = e.Context.SetSubject(subject)
	e.SetExtension("note", ext)
	e.SetTime(time.Date(2026, 3, 1, 12, 0, 0, 123456789, time.UTC))
	_ = e.Context.SetDataContentType("application/json")
	e.DataEncoded = data
	return e
}

func TestAttributesSurviveTheWire(t *testing.T) {
	t.Parallel()
	server := bustest.Server(t)
	nc, err := server.Connect()
	require.NoError(t, err)
	defer nc.Close()
	sub, err := nc.SubscribeSync("wire")
	require.NoError(t, err)
	for _, v := range []string{
		"plain", "two words", " blank at the start", "blank at the end ", "\tTab", "100%", "%41", "line\r\nbreak", "naïve ☃", "\u00a0no-break\u00a0",
		"☃", "\u2003", "quote \"", "\x00\x7f", "a:b", "ends with a percent%", "é", "\u0085next line\u0085", "日本", strings.Repeat("long ", 1000),
	} {
		e := odd("id-1", "/x", "n1", v, []byte(`{"a":1}`))
		require.NoError(t, e.Validate(), "%q", v)
		m, err := bus.EncodeEvent(e)
		require.NoError(t, err)
		m.Subject = "wire"
		require.NoError(t, nc.PublishMsg(m))
		got, err := sub.NextMsg(5 * time.Second)
		require.NoError(t, err)
		back, err := bus.DecodeEvent(got.Header, got.Data)
		require.NoError(t, err)
		require.Equal(t, v, back.Extensions()["note"])
		require.Equal(t, e.Time(), back.Time())
		require.Equal(t, e.ID(), back.ID())
		require.JSONEq(t, `{"a":1}`, string(back.Data()))
	}
}

func TestTheBinaryModeIsThatOfTheSDK(t *testing.T) {
	t.Parallel()
	e := observed(t, "home", "pi4.lan", "e1")
	req, err := http.NewRequest(http.MethodPost, "http://localhost", nil)
	require.NoError(t, err)
	require.NoError(t, cehttp.WriteRequest(context.Background(), binding.ToMessage(&e), req))
	m, err := bus.EncodeEvent(e)
	require.NoError(t, err)
	want := map[string]string{}
	for name, vs := range req.Header {
		want[strings.ToLower(name)] = vs[0]
	}
	delete(want, "content-length")
	got := map[string]string{}
	for name, vs := range m.Header {
		got[strings.ToLower(name)] = vs[0]
	}
	delete(got, "nats-msg-id")
	require.Equal(t, want, got)
	var body bytes.Buffer
	_, err = body.ReadFrom(req.Body)
	require.NoError(t, err)
	require.Equal(t, body.String(), string(m.Data))
	require.Equal(t, "k3sas.home.node.pi4_lan.node.observed", m.Subject)

	back, err := bus.DecodeEvent(nats.Header(req.Header), body.Bytes())
	require.NoError(t, err, "canonical header names are read, too")
	require.Equal(t, e.String(), back.String())
}

func TestTheStructuredModeIsRead(t *testing.T) {
	t.Parallel()
	e := observed(t, "home", "n1", "e1")
	raw, err := json.Marshal(e)
	require.NoError(t, err)
	back, err := bus.DecodeEvent(nats.Header{"Content-Type": {"application/cloudevents+json; charset=utf-8"}}, raw)
	require.NoError(t, err)
	require.Equal(t, e.String(), back.String())
	_, err = bus.DecodeEvent(nats.Header{"content-type": {"application/cloudevents+json"}}, []byte(`{"specversion":"1.0"}`))
	require.Error(t, err)
}

func TestLargeDataIsCompressed(t *testing.T) {
	t.Parallel()
	b := bustest.New(t)
	data := []byte(`{"text":"` + strings.Repeat("a pod that waits ", 200_000) + `"}`)
	e := odd("big", "/x", "n1", "v", data)
	m, err := bus.EncodeEvent(e)
	require.NoError(t, err)
	require.Less(t, len(m.Data), len(data)/10)
	require.NoError(t, b.Publish(ctxT(t), e))
	d, ok, err := b.Last(ctxT(t), bus.Key{Cluster: "home", Name: "n1"}, events.TypeNodeObserved)
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, data, d.Event.Data())
}

func TestWrongMessagesAreRefusedWithTheReason(t *testing.T) {
	t.Parallel()
	ok := func(change func(nats.Header)) nats.Header {
		h := nats.Header{"ce-specversion": {"1.0"}, "ce-id": {"1"}, "ce-source": {"/x"}, "ce-type": {"t"}}
		change(h)
		return h
	}
	for want, h := range map[string]nats.Header{
		"ce-specversion: is missing":       {},
		`expected 1.0`:                     ok(func(h nats.Header) { h["ce-specversion"] = []string{"0.3"} }),
		"id: MUST be a non-empty string":   ok(func(h nats.Header) { delete(h, "ce-id") }),
		"more than one value":              ok(func(h nats.Header) { h["Ce-Id"] = []string{"2"} }),
		"more than one":                    ok(func(h nats.Header) { h["ce-type"] = []string{"a", "b"} }),
		"ce-time":                          ok(func(h nats.Header) { h["ce-time"] = []string{"noon"} }),
		"ce-no_good":                       ok(func(h nats.Header) { h["ce-no_good"] = []string{"x"} }),
		"expected it as content-type":      ok(func(h nats.Header) { h["ce-datacontenttype"] = []string{"text/plain"} }),
		`content-encoding: is "gzip"`:      ok(func(h nats.Header) { h["content-encoding"] = []string{"gzip"} }),
		"content-encoding: unexpected EOF": ok(func(h nats.Header) { h["content-encoding"] = []string{"zstd"} }),
	} {
		_, err := bus.DecodeEvent(h, []byte("x"))
		require.ErrorContains(t, err, want)
	}
	_, err := bus.EncodeEvent(events.Event{})
	require.Error(t, err)
	e := odd("1", "/x", "n1", "v", nil)
	e.SetType("another.type")
	_, err = bus.EncodeEvent(e)
	require.ErrorContains(t, err, "not in the catalogue")
}

func FuzzDecodeEvent(f *testing.F) {
	f.Add("1.0", "id", "/source", "type", "2026-03-01T12:00:00Z", "note", "value", "application/json", "", []byte(`{}`))
	f.Add("1.0", "%", "%zz", "t", "", "x", "\r\n", "application/cloudevents+json", "zstd", []byte("{"))
	f.Fuzz(func(t *testing.T, version, id, source, typ, at, ext, v, contentType, encoding string, data []byte) {
		h := nats.Header{
			"ce-specversion": {version}, "ce-id": {id}, "ce-source": {source}, "ce-type": {typ}, "ce-" + ext: {v},
			"content-type": {contentType},
		}
		if at != "" {
			h["ce-time"] = []string{at}
		}
		if encoding != "" {
			h["content-encoding"] = []string{encoding}
		}
		e, err := bus.DecodeEvent(h, data)
		if err != nil {
			return
		}
		if err := e.Validate(); err != nil {
			t.Fatalf("decoded an invalid event: %v", err)
		}
	})
}

func FuzzEventRoundTrip(f *testing.F) {
	f.Add("id", "/source", "subject", "value", []byte(`{"a":1}`))
	f.Add(" %41 ", "urn:x", "\u2003", "\r\n\t", []byte{})
	f.Fuzz(func(t *testing.T, id, source, subject, ext string, data []byte) {
		e := odd(id, source, subject, ext, data)
		if e.Validate() != nil {
			return
		}
		m, err := bus.EncodeEvent(e)
		if err != nil {
			return
		}
		for name, vs := range m.Header {
			if v := vs[0]; strings.ContainsAny(v, "\r\n") || strings.TrimSpace(v) != v {
				t.Fatalf("header %s: %q would be changed on the wire", name, v)
			}
		}
		back, err := bus.DecodeEvent(m.Header, m.Data)
		if err != nil {
			t.Fatalf("decode what was encoded: %v", err)
		}
		if back.ID() != e.ID() || back.Source() != e.Source() || back.Subject() != e.Subject() ||
			back.Extensions()["note"] != e.Extensions()["note"] && ext != "" || !bytes.Equal(back.Data(), e.Data()) {
			t.Fatalf("%v became %v", e, back)
		}
	})
}
