package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/api"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/audit"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/replay"
)

// remoteLog is the stream of record of a process that runs. It only asks.
type remoteLog struct {
	a  *app
	cl *client
}

var _ replay.Log = remoteLog{}

// LogState implements replay.Log.
func (r remoteLog) LogState(ctx context.Context) (bus.LogState, error) {
	var info api.LogInfo
	if err := r.cl.get(ctx, "/v1/log", nil, &info); err != nil {
		return bus.LogState{}, err
	}
	return bus.LogState{Exists: true, Incarnation: info.Incarnation, First: info.First, Last: info.Last,
		FirstTime: info.FirstTime, LastTime: info.LastTime, Events: info.Events, Bytes: info.Bytes}, nil
}

// Read implements replay.Log for ranges; it does not follow.
func (r remoteLog) Read(ctx context.Context, o bus.ReadOptions) iter.Seq2[bus.Delivery, error] {
	return func(yield func(bus.Delivery, error) bool) {
		q := query("cluster", o.Cluster, "node", o.Node)
		q["full"], q["follow"], q["type"] = []string{"true"}, []string{"false"}, o.Types
		for name, p := range map[string]replay.Position{"since": {Sequence: o.FromSequence, Time: o.Since}, "until": {Sequence: o.UntilSequence, Time: o.Until}} {
			switch {
			case !p.Time.IsZero():
				q.Set(name, p.Time.Format(time.RFC3339Nano))
			case p.Sequence > 0:
				q.Set(name, strconv.FormatUint(p.Sequence, 10))
			}
		}
		err := r.a.follow(ctx, r.cl, q, nil, func(e api.Entry) (bool, error) {
			d, err := delivered(e)
			switch {
			case err != nil:
				return false, err
			case d.Sequence < o.FromSequence:
				return true, nil
			case o.UntilSequence > 0 && d.Sequence > o.UntilSequence:
				return false, nil
			}
			return yield(d, nil), nil
		})
		if err != nil {
			yield(bus.Delivery{}, err)
		}
	}
}

// delivered is an entry of the log as it reached the handlers.
func delivered(e api.Entry) (bus.Delivery, error) {
	var event events.Event
	err := json.Unmarshal(e.Event, &event)
	var d bus.Delivery
	if err == nil {
		d, err = bus.Delivered(event, e.Sequence, e.Incarnation, e.StreamTime)
	}
	if err != nil {
		return d, fmt.Errorf("read event %d: %w", e.Sequence, err)
	}
	return d, nil
}

// remoteAudit is the audit store of a process that runs.
type remoteAudit struct{ cl *client }

var _ replay.Live = remoteAudit{}

// High implements replay.Live.
func (r remoteAudit) High(ctx context.Context) (incarnation string, sequence uint64, err error) {
	var info api.LogInfo
	err = r.cl.get(ctx, "/v1/log", nil, &info)
	return info.Audited.Incarnation, info.Audited.Sequence, err
}

// List implements replay.Live, oldest first.
func (r remoteAudit) List(ctx context.Context, q audit.Query) ([]audit.Record, error) {
	v := query("cluster", q.Cluster, "node", q.Node, "cursor", q.Cursor, "order", "oldest", "full", "true", "limit", strconv.Itoa(q.Limit))
	v["type"] = q.Types
	var p api.Page[api.AuditRecord]
	if err := r.cl.get(ctx, "/v1/audit", v, &p); err != nil {
		return nil, err
	}
	out := make([]audit.Record, len(p.Items))
	for i, x := range p.Items {
		out[i] = stored(x)
	}
	return out, nil
}

// Get implements replay.Live.
func (r remoteAudit) Get(ctx context.Context, eventID string) (audit.Record, error) {
	var x api.AuditRecord
	err := r.cl.get(ctx, "/v1/audit/"+url.PathEscape(eventID), nil, &x)
	var f *failure
	if errors.As(err, &f) && f.status == http.StatusNotFound {
		return audit.Record{}, audit.ErrNotFound
	}
	return stored(x), err
}

// Gaps implements replay.Live.
func (r remoteAudit) Gaps(ctx context.Context) ([]audit.Gap, error) {
	var p api.Page[api.Gap]
	if err := r.cl.get(ctx, "/v1/audit/gaps", nil, &p); err != nil {
		return nil, err
	}
	out := make([]audit.Gap, len(p.Items))
	for i, g := range p.Items {
		out[i] = audit.Gap(g)
	}
	return out, nil
}

func stored(x api.AuditRecord) audit.Record {
	return audit.Record{
		Incarnation: x.Incarnation, Sequence: x.Sequence, StreamTime: x.StreamTime.UTC(), ID: x.ID, Source: x.Source, Redrive: x.Redrive, Type: x.Type,
		Cluster: x.Cluster, Key: x.Key, Pool: x.Pool, CorrelationID: x.CorrelationID, CausationID: x.CausationID,
		Actor: x.Actor, Reason: x.Reason, Message: x.Message, Event: x.Event,
	}
}
