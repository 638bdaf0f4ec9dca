package api

import (
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"
)

// describe adds the routes that huma does not serve to the description.
func (s *Server) describe() {
	type described struct {
		op       huma.Operation
		accepts  []string
		status   string
		produces string
		open     bool
	}
	for _, d := range []described{
		{op: huma.Operation{OperationID: "post-alerts", Method: http.MethodPost, Path: "/v1/alerts", Summary: "Alertmanager webhook (version 4)",
			Description: "Stores one alert.received for each alert. 2xx only after the bus has stored them; a 503 is to be retried, as Alertmanager does."},
			accepts: []string{"application/json"}, status: "202", produces: "application/json"},
		{op: huma.Operation{OperationID: "post-events", Method: http.MethodPost, Path: "/v1/events", Summary: "CloudEvents, binary, structured or batched",
			Description: "Types: " + strings.Join(accepted, ", ") + ". time and, with one cluster, partitionkey may be left out. The same source and id is stored once."},
			accepts: []string{"application/cloudevents+json", "application/cloudevents-batch+json", "application/json"}, status: "202", produces: "application/json"},
		{op: huma.Operation{OperationID: "stream", Method: http.MethodGet, Path: "/v1/stream", Summary: "Events as they come (server-sent events)",
			Description: "Query: cluster, node, type and exclude (repeatable), since and until (a time, how long ago, or a sequence), full, follow=false to end with what is stored. Last-Event-ID continues behind that sequence; the event \"end\" says that there is no more."}, status: "200", produces: "text/event-stream"},
		{op: huma.Operation{OperationID: "metrics", Method: http.MethodGet, Path: "/metrics", Summary: "Prometheus metrics"}, status: "200", produces: "text/plain"},
		{op: huma.Operation{OperationID: "livez", Method: http.MethodGet, Path: "/livez", Summary: "The process runs"}, status: "200", produces: "text/plain", open: true},
		{op: huma.Operation{OperationID: "readyz", Method: http.MethodGet, Path: "/readyz", Summary: "The process does its work; 503 and which check fails otherwise"}, status: "200", produces: "application/json", open: true},
		{op: huma.Operation{OperationID: "health", Method: http.MethodGet, Path: "/health", Summary: "As /readyz"}, status: "200", produces: "application/json", open: true},
	} {
		op := d.op
		op.Responses = map[string]*huma.Response{
			d.status:  {Description: http.StatusText(map[string]int{"200": 200, "202": 202}[d.status]), Content: map[string]*huma.MediaType{d.produces: {}}},
			"default": {Description: "Problem details", Content: map[string]*huma.MediaType{"application/problem+json": {}}},
		}
		if len(d.accepts) > 0 {
			op.RequestBody = &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{}}
			for _, a := range d.accepts {
				op.RequestBody.Content[a] = &huma.MediaType{}
			}
		}
		if d.open {
			op.Security = []map[string][]string{}
		}
		s.huma.OpenAPI().AddOperation(&op)
	}
}
