package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/api"
)

func (a *app) auditCommand() *cobra.Command {
	var cluster, node, pool, actor, correlation, causation, since, until string
	var types []string
	var oldest, all bool
	var limit int
	list := &cobra.Command{
		Use: "list", Short: "What happened, who asked for it and why; newest first",
		Example: "  k3s-autoscaler audit list --node burst-4k2jq0m8aa   # one node's whole life\n  k3s-autoscaler audit list --actor ada --since 24h",
		Args:    cobra.NoArgs,
		RunE: do(func(cmd *cobra.Command, _ []string) error {
			cl, err := a.connect()
			if err != nil {
				return err
			}
			q := query("cluster", cluster, "node", node, "pool", pool, "actor", actor, "correlation", correlation, "causation", causation, "since", since, "until", until)
			quietly(q, types, all)
			if oldest {
				q.Set("order", "oldest")
			}
			if a.output != formatTable {
				q.Set("full", "true") // for programs: the events themselves too
			}
			records, err := pages[api.AuditRecord](cmd.Context(), cl, "/v1/audit", q, limit)
			if err != nil {
				return err
			}
			return a.show(records, func(w io.Writer) error { return a.auditTable(w, records) })
		}),
	}
	f := list.Flags()
	clusterFlag(list, &cluster)
	f.StringVar(&node, "node", "", "only about this node")
	f.StringVar(&pool, "pool", "", "only about this pool")
	f.StringVar(&actor, "actor", "", "only what this person or tool asked for")
	f.StringVar(&correlation, "correlation", "", "only of this correlation id")
	f.StringVar(&causation, "causation", "", "only what this event led to")
	f.StringVar(&since, "since", "", "not before: a time or how long ago, e.g. 2h")
	f.StringVar(&until, "until", "", "before: a time or how long ago")
	f.StringSliceVar(&types, "type", nil, "only these types, e.g. node.ready or node.*")
	f.BoolVar(&all, "all", false, "also snapshots and checkpoints, which come without end")
	f.BoolVar(&oldest, "oldest-first", false, "begin with the oldest")
	f.IntVar(&limit, "limit", 100, "at most so many")
	show := &cobra.Command{
		Use: "show ID", Short: "One event, whole", Args: cobra.ExactArgs(1),
		RunE: do(func(cmd *cobra.Command, args []string) error {
			cl, err := a.connect()
			if err != nil {
				return err
			}
			var r api.AuditRecord
			if err := cl.get(cmd.Context(), "/v1/audit/"+url.PathEscape(args[0]), nil, &r); err != nil {
				return err
			}
			return a.show(r, func(w io.Writer) error { return recordText(w, r) })
		}),
	}
	return parent("audit", "What happened, from the audit store", a.listing(list), a.listing(show))
}

func (a *app) auditTable(w io.Writer, records []api.AuditRecord) error {
	if len(records) == 0 {
		_, err := fmt.Fprintln(w, "nothing recorded that matches")
		return err
	}
	t := newColumns(w, "TIME", "EVENT", "ABOUT", "POOL", "ACTOR", "WHY", "ID")
	for _, r := range records {
		about := r.Key
		if nodeOf(r.Key) == "" {
			about = r.Cluster
		}
		why := r.Reason
		if r.Message != "" {
			why = r.Message
		}
		t.row(r.StreamTime.Local().Format("01-02 15:04:05"), short(r.Type), about, r.Pool, r.Actor, why, r.ID)
	}
	return t.flush("")
}

// recordText writes the attributes, then the data.
func recordText(w io.Writer, r api.AuditRecord) error {
	var l lines
	for _, p := range [][2]string{
		{"event", r.Type}, {"id", r.ID}, {"source", r.Source}, {"stored", r.StreamTime.Local().Format("2006-01-02 15:04:05.000 MST")},
		{"sequence", strconv.FormatUint(r.Sequence, 10) + " of " + r.Incarnation}, {"cluster", r.Cluster}, {"about", r.Key}, {"pool", r.Pool}, {"actor", r.Actor},
		{"reason", r.Reason}, {"message", r.Message}, {"correlation", r.CorrelationID}, {"caused by", r.CausationID},
	} {
		if p[1] != "" {
			l.add(0, "%-12s %s", p[0], p[1])
		}
	}
	eventData(&l, r.Event)
	_, err := io.WriteString(w, l.String())
	return err
}

// eventData adds the data of a CloudEvent in JSON.
func eventData(l *lines, event json.RawMessage) {
	var e struct {
		Data json.RawMessage `json:"data"`
	}
	if json.Unmarshal(event, &e) != nil || len(e.Data) == 0 {
		return
	}
	var v any
	if json.Unmarshal(e.Data, &v) != nil {
		return
	}
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return
	}
	l.add(0, "data")
	for line := range strings.Lines(string(b)) {
		l.add(2, "%s", strings.TrimRight(line, "\n"))
	}
}
