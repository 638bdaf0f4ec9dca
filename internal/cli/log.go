package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/api"
)

// reconnectDelay is how long a lost stream waits before it is opened again.
const reconnectDelay = time.Second

// quiet are the types that come without end and tell people little.
var quiet = []string{"snapshot.*", "decision.checkpointed"}

// quietly leaves them out unless all types, or some, are asked for.
func quietly(q url.Values, types []string, all bool) {
	for _, t := range types {
		q.Add("type", t)
	}
	if len(types) == 0 && !all {
		q["exclude"] = quiet
	}
}

type logFlags struct {
	cluster, node string
	since, until  string
	types         []string
	all, full     bool
	bundle        string // list alone
}

func (f *logFlags) add(c *cobra.Command) {
	clusterFlag(c, &f.cluster)
	c.Flags().StringVar(&f.node, "node", "", "only about this node")
	c.Flags().StringSliceVar(&f.types, "type", nil, "only these types, e.g. node.ready or node.*")
	c.Flags().StringVar(&f.since, "since", "", "not before: a time, how long ago, e.g. 10m, or a sequence")
	c.Flags().StringVar(&f.until, "until", "", "before: a time or how long ago; or the last sequence")
	c.Flags().BoolVar(&f.all, "all", false, "also snapshots and checkpoints, which come without end")
	c.Flags().BoolVar(&f.full, "full", false, "with the data of snapshots and checkpoints, which are large")
}

func (f *logFlags) query() url.Values {
	q := query("cluster", f.cluster, "node", f.node, "since", f.since, "until", f.until)
	quietly(q, f.types, f.all)
	if f.full {
		q.Set("full", "true")
	}
	return q
}

func (a *app) eventsCommand() *cobra.Command {
	var lf, tf logFlags
	var limit int
	follow, end := false, true
	list := &cobra.Command{
		Use: "list", Short: "List events, oldest first; the newest hundred without --since",
		Args: cobra.NoArgs,
		RunE: do(func(cmd *cobra.Command, _ []string) error {
			if lf.bundle != "" {
				if follow {
					return usagef("--follow: has no place beside --bundle, to which nothing comes")
				}
				entries, err := lf.bundled(cmd.Context(), limit)
				if err != nil {
					return err
				}
				return a.listEntries(entries)
			}
			cl, err := a.connect()
			if err != nil {
				return err
			}
			q := lf.query()
			if follow {
				if limit != 100 {
					return usagef("--limit: has no place beside --follow, which does not end")
				}
				return a.tail(cmd.Context(), cl, q)
			}
			entries, err := pages[api.Entry](cmd.Context(), cl, "/v1/events", q, limit)
			if err != nil {
				return err
			}
			return a.listEntries(entries)
		}),
	}
	lf.add(list)
	bundleFlag(list, &lf.bundle)
	list.Flags().IntVar(&limit, "limit", 100, "at most so many")
	list.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what happens, as 'events tail' does")
	tail := &cobra.Command{
		Use: "tail", Short: "Follow events as they happen",
		Args: cobra.NoArgs,
		RunE: do(func(cmd *cobra.Command, _ []string) error {
			cl, err := a.connect()
			if err != nil {
				return err
			}
			q := tf.query()
			q.Set("follow", strconv.FormatBool(end))
			return a.tail(cmd.Context(), cl, q)
		}),
	}
	tf.add(tail)
	tail.Flags().BoolVarP(&end, "follow", "f", true, "go on with what happens; --follow=false ends with what is stored")
	return parent("events", "List and follow events", a.listing(list), a.listing(tail))
}

func (a *app) listEntries(entries []api.Entry) error {
	return a.show(entries, func(w io.Writer) error {
		if len(entries) == 0 {
			_, err := fmt.Fprintln(w, "no events")
			return err
		}
		t := newColumns(w, "TIME", "SEQUENCE", "EVENT", "ABOUT", "WHAT")
		for _, e := range entries {
			x := parse(e)
			t.row(clockTime(e.StreamTime), strconv.FormatUint(e.Sequence, 10), x.name, x.about, x.what)
		}
		return t.flush("")
	})
}

// pages gathers up to limit items of a listing.
func pages[T any](ctx context.Context, cl *client, path string, q url.Values, limit int) ([]T, error) {
	if limit < 1 {
		return nil, usagef("--limit: is %d, expected at least 1", limit)
	}
	out := []T{}
	for {
		q.Set("limit", strconv.Itoa(min(limit-len(out), 1000)))
		var p api.Page[T]
		if err := cl.get(ctx, path, q, &p); err != nil {
			return nil, err
		}
		out = append(out, p.Items...)
		if p.Next == "" || len(out) >= limit {
			return out, nil
		}
		q.Set("cursor", p.Next)
	}
}

func (a *app) tail(ctx context.Context, cl *client, q url.Values) error {
	err := a.follow(ctx, cl, q, nil, func(e api.Entry) (bool, error) {
		var err error
		switch a.output {
		case formatTable:
			x := parse(e)
			_, err = fmt.Fprintln(a.Stdout, strings.TrimRight(fmt.Sprintf("%s  %-28s  %-22s  %s", clockTime(e.StreamTime), x.name, x.about, x.what), " "))
		case formatJSON:
			var b []byte
			if b, err = json.Marshal(e); err == nil {
				_, err = fmt.Fprintln(a.Stdout, string(b))
			}
		default:
			if _, err = fmt.Fprintln(a.Stdout, "---"); err == nil {
				err = a.show(e, nil)
			}
		}
		return err == nil, err
	})
	if errors.Is(err, context.Canceled) {
		return nil // the user ends it
	}
	return err
}

// follow calls fn for each event until it returns false, and opens the stream
// again where it was lost. opened is called once the first stream is open.
func (a *app) follow(ctx context.Context, cl *client, q url.Values, opened func() error, fn func(api.Entry) (bool, error)) error {
	last := ""
	for first := true; ; first = false {
		r, err := cl.request(ctx, http.MethodGet, "/v1/stream", q, nil)
		if err != nil {
			return err
		}
		if last != "" {
			r.Header.Set("Last-Event-ID", last)
		}
		res, err := cl.send(r)
		switch {
		case err != nil && (first || ctx.Err() != nil):
			return err
		case err != nil:
			fmt.Fprintf(a.Stderr, "%v\ntrying again\n", err)
		default:
			if first && opened != nil {
				if err := opened(); err != nil {
					res.Body.Close()
					return err
				}
			}
			more, err := readStream(res.Body, &last, fn)
			res.Body.Close()
			if err != nil || !more {
				return err
			}
		}
		t := a.Clock.NewTimer(reconnectDelay)
		select {
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		case <-t.C():
		}
	}
}

// readStream reads server-sent events; more is false when fn has enough.
func readStream(body io.Reader, last *string, fn func(api.Entry) (bool, error)) (more bool, err error) {
	s := bufio.NewScanner(body)
	s.Buffer(make([]byte, 64<<10), maxAnswer)
	name := ""
	for s.Scan() {
		field, value, _ := strings.Cut(s.Text(), ": ")
		switch field {
		case "id":
			*last = value
		case "event":
			name = value
		case "data":
			switch name {
			case "error":
				return true, nil
			case "end":
				return false, nil
			}
			var e api.Entry
			if err := json.Unmarshal([]byte(value), &e); err != nil {
				return false, fmt.Errorf("read event stream: %w", err)
			}
			if more, err := fn(e); err != nil || !more {
				return false, err
			}
		}
	}
	return true, nil // the stream ended or broke: it is opened again
}

// seen is an event as people read it.
type seen struct{ name, about, what string }

func parse(e api.Entry) seen {
	var ev events.Event
	if err := json.Unmarshal(e.Event, &ev); err != nil {
		return seen{name: "(unreadable)", what: err.Error()}
	}
	x := seen{name: short(ev.Type())}
	cluster, key, err := events.PartitionKey(ev)
	if err == nil {
		x.about = key
		if key == events.ClusterKey {
			x.about = cluster
		}
	}
	if ev.Type() == events.TypeShadowDecided {
		x.what = differenceLine(ev)
		return x
	}
	var data struct {
		Pool    string          `json:"pool"`
		Action  string          `json:"action"`
		Count   int             `json:"count"`
		Node    string          `json:"node"`
		Delta   int             `json:"delta"`
		Status  string          `json:"status"`
		Actor   string          `json:"actor"`
		What    string          `json:"what"`
		Step    string          `json:"step"`
		Goal    string          `json:"goal"`
		Labels  json.RawMessage `json:"labels"`
		Reason  json.RawMessage `json:"reason"`
		Failure struct {
			Reason events.Reason `json:"reason"`
		} `json:"failure"`
		Blockers  []events.Blocker `json:"blockers"`
		Evicted   json.RawMessage  `json:"evicted"`
		Remaining *int             `json:"remaining"`
		Waiting   []string         `json:"waiting_for"`

		Foreseen     []events.Blocker   `json:"foreseen"`
		Forced       []events.ForcedPod `json:"forced"`
		ForcingUntil time.Time          `json:"forcing_until"`
	}
	_ = json.Unmarshal(ev.Data(), &data) // what is not there is not shown
	if strings.HasPrefix(x.name, "snapshot.") || strings.HasPrefix(x.name, "decision.") {
		return x
	}
	if ev.Type() == events.TypeSignalReceived {
		x.what = signalText(ev)
		return x
	}
	var parts []string
	part := func(s string) {
		if s != "" {
			parts = append(parts, s)
		}
	}
	if key == events.ClusterKey {
		part(data.Pool)
	}
	part(data.Action)
	if data.Count > 0 {
		part(strconv.Itoa(data.Count))
	}
	if data.Node != key {
		part(data.Node)
	}
	part(signed(data.Delta))
	part(data.Status)
	part(label(data.Labels, "alertname"))
	part(data.What)
	part(data.Step)
	if data.Remaining == nil && len(data.Blockers) == 0 {
		part(data.Goal)
	}
	if data.Remaining != nil {
		of := "pod"
		if strings.HasPrefix(x.name, "deadletter.") {
			of = "dead letter"
		}
		part(plural(*data.Remaining, of) + " left")
	}
	if n := len(data.Waiting); n > 0 {
		part("waits for " + plural(n, "pod") + " of Jobs to end: " + some(data.Waiting, n))
	}
	if !data.ForcingUntil.IsZero() {
		part("past the deadline, goes on by force until " + data.ForcingUntil.UTC().Format("15:04:05"))
	}
	for _, f := range data.Forced {
		part("forced " + f.Pod + ": " + f.Reason.Message)
	}
	for _, b := range data.Foreseen {
		part("may be blocked by " + strings.TrimSpace(b.Kind+" "+b.Name) + " for pod " + b.Pod)
	}
	x.what = strings.Join(parts, " ")
	why := reasonText(data.Reason)
	if data.Failure.Reason.Message != "" {
		why = data.Failure.Reason.Message
	}
	for _, b := range data.Blockers {
		why = strings.TrimSpace(b.Kind + " " + b.Name + ": " + b.Message)
		break
	}
	if data.Actor != "" {
		why = strings.TrimSuffix(data.Actor+": "+why, ": ")
	}
	if why != "" {
		x.what = strings.TrimPrefix(x.what+" · "+why, " · ")
	}
	if events.IsDryRun(ev) {
		x.what += " (dry run)"
	}
	return x
}

func label(raw json.RawMessage, name string) string {
	var m map[string]string
	_ = json.Unmarshal(raw, &m) // labels of another shape are not shown
	return m[name]
}

// reasonText reads a reason that is a sentence or a code with one.
func reasonText(raw json.RawMessage) string {
	var s string
	if json.Unmarshal(raw, &s) == nil {
		return s
	}
	var r events.Reason
	_ = json.Unmarshal(raw, &r) // a reason of another shape is not shown
	if r.Message != "" {
		return r.Message
	}
	return r.Code
}
