package api

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/audit"
)

// writeProblem answers with problem details (RFC 9457).
func writeProblem(w http.ResponseWriter, status int, detail string, errs ...*huma.ErrorDetail) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	// The connection may be gone; there is nobody left to tell.
	_ = json.NewEncoder(w).Encode(huma.ErrorModel{
		Type: "about:blank", Title: http.StatusText(status), Status: status, Detail: detail, Errors: errs,
	})
}

// sentence begins with a capital.
func sentence(err error) string {
	s := err.Error()
	return strings.ToUpper(s[:1]) + s[1:]
}

// fieldErrors splits joined errors of the form "field: message". A field is
// one of the data unless it is an attribute of the event.
func fieldErrors(err error, at string) []*huma.ErrorDetail {
	var out []*huma.ErrorDetail
	for line := range strings.SplitSeq(err.Error(), "\n") {
		field, message, ok := strings.Cut(line, ": ")
		switch {
		case !ok || strings.ContainsAny(field, " \""):
			out = append(out, &huma.ErrorDetail{Message: line, Location: strings.TrimSuffix(at, ".")})
		case field == "data" || field == "type" || field == events.ExtPartitionKey:
			out = append(out, &huma.ErrorDetail{Message: field + " " + message, Location: at + field})
		default:
			out = append(out, &huma.ErrorDetail{Message: field + " " + message, Location: at + "data." + field})
		}
	}
	return out
}

// publishProblem answers for an error of the Publisher.
func (s *Server) publishProblem(w http.ResponseWriter, r *http.Request, err error) {
	switch {
	case errors.Is(err, bus.ErrTooLarge):
		writeProblem(w, http.StatusRequestEntityTooLarge, "An event is too large for the bus.")
	case errors.Is(err, bus.ErrUnavailable), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		s.o.Logger.ErrorContext(r.Context(), "bus does not acknowledge, the caller has to send again", "path", r.URL.Path, "error", err)
		w.Header().Set("Retry-After", "5")
		writeProblem(w, http.StatusServiceUnavailable, "The bus does not acknowledge. Nothing is lost: send the same events, with the same ids, again.")
	default:
		s.o.Logger.ErrorContext(r.Context(), "events could not be published", "path", r.URL.Path, "error", err)
		writeProblem(w, http.StatusInternalServerError, "The events could not be published; the server's log says why.")
	}
}

// queryError is what a query answers for an error of a port.
func (s *Server) queryError(ctx context.Context, what string, err error) error {
	switch {
	case errors.Is(err, audit.ErrCursor):
		return huma.Error400BadRequest(sentence(err), &huma.ErrorDetail{Message: err.Error(), Location: "query.cursor"})
	case errors.Is(err, audit.ErrNotFound):
		return huma.Error404NotFound(sentence(err))
	case errors.Is(err, bus.ErrUnavailable), errors.Is(err, context.DeadlineExceeded):
		return huma.Error503ServiceUnavailable(what + " can't be read at the moment: " + err.Error())
	}
	s.o.Logger.ErrorContext(ctx, "query failed", "what", what, "error", err)
	return huma.Error500InternalServerError(what + " could not be read; the server's log says why.")
}

func (s *Server) notFound(w http.ResponseWriter, r *http.Request) {
	for _, route := range s.Routes() {
		if route.Path == r.URL.Path {
			w.Header().Set("Allow", route.Method)
			writeProblem(w, http.StatusMethodNotAllowed, "Use "+route.Method+" here.")
			return
		}
	}
	writeProblem(w, http.StatusNotFound, "There is nothing at "+r.URL.Path+"; /v1/openapi.json lists what there is.")
}
