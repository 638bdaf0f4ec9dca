package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"k8s.io/utils/clock"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// recentWindow is how far back a listing without a beginning looks.
const recentWindow = time.Hour

// LogFilter holds the filters of /v1/events and /v1/stream.
type LogFilter struct {
	ClusterFilter
	TypeFilter
	Node string `query:"node" doc:"Only about this node, or _cluster" maxLength:"253"`
	Full bool   `query:"full" doc:"With the data of snapshots and checkpoints, which are large"`
}

func (f LogFilter) options() (bus.ReadOptions, error) {
	types, err := f.full()
	if err != nil {
		return bus.ReadOptions{}, err
	}
	if f.Cluster != "" {
		if err := events.ValidateCluster(f.Cluster); err != nil {
			return bus.ReadOptions{}, huma.Error422UnprocessableEntity(sentence(err), &huma.ErrorDetail{Location: "query.cluster", Message: err.Error(), Value: f.Cluster})
		}
	}
	if f.Node != "" {
		if _, err := events.EncodeKey(f.Node); err != nil {
			return bus.ReadOptions{}, huma.Error422UnprocessableEntity(sentence(err), &huma.ErrorDetail{Location: "query.node", Message: err.Error(), Value: f.Node})
		}
	}
	return bus.ReadOptions{Cluster: f.Cluster, Node: f.Node, Types: types}, nil
}

// large lists the types whose data is left out unless it is asked for.
func large(typ string) bool {
	return typ == events.TypeSnapshotCaptured || typ == events.TypeSnapshotChanged || typ == events.TypeDecisionCheckpointed
}

// EntryOf is an event as the log lists it; full: with the data of large ones.
func EntryOf(d bus.Delivery, full bool) (Entry, error) {
	out := Entry{Sequence: d.Sequence, Incarnation: d.Incarnation, StreamTime: d.StreamTime}
	e := d.Event
	if !full && large(e.Type()) && len(e.Data()) > 1024 {
		e = e.Clone()
		out.Truncated = true
		e.DataEncoded = nil
	}
	b, err := e.MarshalJSON()
	if err != nil {
		e.DataBase64 = true // data that is not what its content type says
		if b, err = e.MarshalJSON(); err != nil {
			return out, fmt.Errorf("encode event %s: %w", e.ID(), err)
		}
	}
	out.Event = b
	return out, nil
}

// told is what the log tells of a message: the event, or the one that stands for
// it in the audit when it is none.
func told(d bus.Delivery, err error) (bus.Delivery, error) {
	var undecodable *bus.UndecodableError
	if errors.As(err, &undecodable) {
		return bus.Undecoded(events.HandlerAuditing, d, undecodable)
	}
	return d, err
}

// position reads a place in the log: a sequence, an instant, or how long ago.
func position(s string, now time.Time) (uint64, time.Time, error) {
	if seq, err := strconv.ParseUint(s, 10, 63); err == nil {
		return seq, time.Time{}, nil
	}
	t, err := when(s, now)
	if err != nil {
		err = fmt.Errorf("%w, or a sequence", err)
	}
	return 0, t, err
}

// notUnderstood is the refusal of a place that can't be read.
func notUnderstood(parameter, value string, err error) error {
	return huma.Error422UnprocessableEntity("A place in the log is not understood.", &huma.ErrorDetail{Location: "query." + parameter, Message: err.Error(), Value: value})
}

func (s *Server) listEvents(ctx context.Context, in *struct {
	LogFilter
	Since  string `query:"since" doc:"Not before: a time (RFC 3339), how long ago, e.g. 10m, or a sequence" maxLength:"40"`
	Until  string `query:"until" doc:"Before: a time (RFC 3339) or how long ago; or the last sequence" maxLength:"40"`
	Limit  int    `query:"limit" minimum:"1" maximum:"1000" default:"100"`
	Cursor string `query:"cursor" doc:"'next' of the page before" maxLength:"20"`
}) (*body[Page[Entry]], error) {
	o, err := in.options()
	if err != nil {
		return nil, err
	}
	now := s.o.Clock.Now()
	if o.FromSequence, o.Since, err = position(in.Since, now); err != nil {
		return nil, notUnderstood("since", in.Since, err)
	}
	var until uint64
	if until, o.Until, err = position(in.Until, now); err != nil {
		return nil, notUnderstood("until", in.Until, err)
	}
	newest := in.Since == "" && in.Cursor == ""
	if newest {
		o.Since = now.Add(-recentWindow)
	} else {
		o.Limit = in.Limit
	}
	if in.Cursor != "" {
		last, err := strconv.ParseUint(in.Cursor, 10, 63)
		if err != nil {
			return nil, huma.Error400BadRequest("The cursor is not one of ours.", &huma.ErrorDetail{Location: "query.cursor", Message: "expected 'next' of a page", Value: in.Cursor})
		}
		o.FromSequence = max(o.FromSequence, last+1)
	}
	if o.UntilSequence, err = s.o.Log.LastSequence(ctx); err != nil {
		return nil, s.queryError(ctx, "the event log", err)
	}
	if until > 0 {
		o.UntilSequence = min(o.UntilSequence, until)
	}
	items := []Entry{}
	if o.UntilSequence < max(o.FromSequence, 1) {
		return &body[Page[Entry]]{Page[Entry]{Items: items}}, nil
	}
	for d, err := range s.o.Log.Read(ctx, o) {
		if d, err = told(d, err); err != nil {
			return nil, s.queryError(ctx, "the event log", err)
		}
		x, err := EntryOf(d, in.Full)
		if err != nil {
			return nil, s.queryError(ctx, "the event log", err)
		}
		items = append(items, x)
		if newest && len(items) > in.Limit {
			items = items[1:]
		}
	}
	out := &body[Page[Entry]]{Page[Entry]{Items: items}}
	if len(items) == in.Limit && !newest {
		out.Body.Next = strconv.FormatUint(items[len(items)-1].Sequence, 10)
	}
	return out, nil
}

// streamOptions reads the query and the Last-Event-ID of /v1/stream.
func (s *Server) streamOptions(r *http.Request) (o bus.ReadOptions, full bool, err error) {
	q := r.URL.Query()
	for k := range q {
		switch k {
		case "cluster", "node", "type", "exclude", "full", "since", "until", "follow":
		default:
			return o, false, huma.Error422UnprocessableEntity("There is no query parameter " + strconv.Quote(k) + ".")
		}
	}
	f := LogFilter{ClusterFilter: ClusterFilter{q.Get("cluster")}, TypeFilter: TypeFilter{Type: q["type"], Exclude: q["exclude"]}, Node: q.Get("node"), Full: q.Get("full") == "true"}
	if o, err = f.options(); err != nil {
		return o, false, err
	}
	switch follow := q.Get("follow"); follow {
	case "", "true":
		o.Follow = true
	case "false":
	default:
		return o, false, huma.Error422UnprocessableEntity("follow is " + strconv.Quote(follow) + ", expected true or false.")
	}
	now := s.o.Clock.Now()
	if until := q.Get("until"); until != "" {
		if o.UntilSequence, o.Until, err = position(until, now); err != nil {
			return o, false, notUnderstood("until", until, err)
		}
	}
	if since := q.Get("since"); since != "" {
		if o.FromSequence, o.Since, err = position(since, now); err != nil {
			return o, false, notUnderstood("since", since, err)
		}
	}
	if last := r.Header.Get("Last-Event-ID"); last != "" {
		seq, err := strconv.ParseUint(last, 10, 63)
		if err != nil {
			return o, false, huma.Error400BadRequest("Last-Event-ID is no sequence.")
		}
		o.FromSequence, o.Since = seq+1, time.Time{}
		return o, f.Full, nil
	}
	if q.Get("since") != "" || !o.Follow {
		return o, f.Full, nil
	}
	last, err := s.o.Log.LastSequence(r.Context())
	if err != nil {
		return o, false, s.queryError(r.Context(), "the event log", err)
	}
	o.FromSequence = last + 1
	return o, f.Full, nil
}

// stream sends events as they come (server-sent events): id is the sequence,
// event the type without prefix and version, data an Entry. A client that comes
// back with Last-Event-ID misses nothing that is still stored. The last event is
// "end" when everything that was asked for was sent.
func (s *Server) stream(w http.ResponseWriter, r *http.Request) {
	o, full, err := s.streamOptions(r)
	if err != nil {
		var p *huma.ErrorModel
		if errors.As(err, &p) {
			writeProblem(w, p.Status, p.Detail, p.Errors...)
			return
		}
		writeProblem(w, http.StatusInternalServerError, err.Error())
		return
	}
	select {
	case s.streams <- struct{}{}:
		defer func() { <-s.streams }()
	default:
		w.Header().Set("Retry-After", "10")
		writeProblem(w, http.StatusServiceUnavailable, fmt.Sprintf("There are %d event streams already.", cap(s.streams)))
		return
	}
	c := http.NewResponseController(w)
	// The server's deadlines are for calls that end; a stream gets one a write.
	_ = c.SetReadDeadline(time.Time{})
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no")
	w.WriteHeader(http.StatusOK)
	send := func(text string) error {
		// The kernel knows the real clock alone. A recorder in a test has no deadline.
		_ = c.SetWriteDeadline(clock.RealClock{}.Now().Add(s.o.Limits.WriteTimeout))
		if _, err := w.Write([]byte(text)); err != nil {
			return err
		}
		return c.Flush()
	}
	if send(": following\n\n") != nil {
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	lines := make(chan string)
	go s.follow(ctx, o, full, lines)
	beat := s.o.Clock.NewTicker(s.o.Limits.Heartbeat)
	defer beat.Stop()
	for {
		var text string
		select {
		case line, ok := <-lines:
			if !ok {
				return
			}
			text = line
		case <-beat.C():
			text = ": alive\n\n"
		case <-s.closing:
			return
		case <-ctx.Done():
			return
		}
		if send(text) != nil {
			return
		}
	}
}

// follow turns the log into lines until ctx ends or the log fails.
func (s *Server) follow(ctx context.Context, o bus.ReadOptions, full bool, lines chan<- string) {
	defer close(lines)
	for d, err := range s.o.Log.Read(ctx, o) {
		var text string
		if d, err = told(d, err); err == nil {
			text, err = streamLine(d, full)
		}
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			s.o.Logger.WarnContext(ctx, "event stream ended, the client has to connect again", "error", err)
			text = "event: error\ndata: " + strings.ReplaceAll(err.Error(), "\n", " ") + "\n\n"
		}
		select {
		case lines <- text:
		case <-ctx.Done():
			return
		}
		if err != nil {
			return
		}
	}
	select {
	case lines <- "event: end\ndata: {}\n\n":
	case <-ctx.Done():
	}
}

func streamLine(d bus.Delivery, full bool) (string, error) {
	x, err := EntryOf(d, full)
	if err != nil {
		return "", err
	}
	b, err := json.Marshal(x)
	if err != nil {
		return "", err
	}
	name := d.Event.Type()
	if def, ok := events.Lookup(name); ok {
		name = def.Suffix()
	}
	return fmt.Sprintf("id: %d\nevent: %s\ndata: %s\n\n", d.Sequence, name, b), nil
}
