// Package promql asks a server with the HTTP API of Prometheus for single values.
//
// It knows neither events nor rules: a query goes in, a number comes out, or an
// error that says in words for an operator why there is none. No answer is no
// number: an empty one, NaN, and several series are errors.
package promql

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/prometheus/client_golang/api"
	prometheus "github.com/prometheus/client_golang/api/prometheus/v1"
	httpconfig "github.com/prometheus/common/config"
	"github.com/prometheus/common/model"
)

const (
	defaultTimeout = 5 * time.Second
	// maxAnswer bounds what is read of an answer, in bytes: one value needs few, and
	// who selects everything by mistake shall not fill the memory.
	maxAnswer = 1 << 20
	// named is how many series of an answer with too many are named.
	named = 3
)

// Errors that say that a query was answered, and not with one number.
var (
	ErrEmpty  = errors.New("the answer is empty: no series matches; where that means zero, add 'or vector(0)'")
	ErrNumber = errors.New("the answer is not a number")
	ErrSeries = errors.New("the answer is not one value")
)

// Options of a Client. URL is required.
type Options struct {
	// URL is the address of the server; a path in it stands before /api/v1/query.
	URL string
	// TokenFile holds a bearer token; Username and the password in PasswordFile are
	// for basic authentication. The files are read for every query, so that they can
	// be replaced.
	TokenFile, Username, PasswordFile string
	// CAFile is the certificate authority of an https URL; empty: the system's.
	CAFile string
	// Timeout of one query. Default 5s.
	Timeout time.Duration
}

// Client asks one server. It is safe for concurrent use.
type Client struct {
	o   Options
	api prometheus.API
}

// New makes no call. The error names what can't be used.
func New(o Options) (*Client, error) {
	u, err := url.Parse(o.URL)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("prometheus: URL is %q, expected one such as http://prometheus:9090", o.URL)
	}
	if o.Timeout <= 0 {
		o.Timeout = defaultTimeout
	}
	// A credential is for one server: redirects are not followed.
	h := httpconfig.HTTPClientConfig{TLSConfig: httpconfig.TLSConfig{CAFile: o.CAFile}, EnableHTTP2: true}
	switch {
	case o.TokenFile != "":
		h.Authorization = &httpconfig.Authorization{Type: "Bearer", CredentialsFile: o.TokenFile}
	case o.Username != "":
		h.BasicAuth = &httpconfig.BasicAuth{Username: o.Username, PasswordFile: o.PasswordFile}
	}
	client, err := httpconfig.NewClientFromConfig(h, "prometheus")
	if err != nil {
		return nil, fmt.Errorf("prometheus: %w", err)
	}
	client.Transport = bounded{client.Transport}
	c, err := api.NewClient(api.Config{Address: o.URL, Client: client})
	if err != nil {
		return nil, fmt.Errorf("prometheus: %w", err)
	}
	return &Client{o: o, api: prometheus.NewAPI(c)}, nil
}

// bounded fails to read an answer that is too large.
type bounded struct{ http.RoundTripper }

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := b.RoundTripper.RoundTrip(r)
	if err == nil {
		res.Body = http.MaxBytesReader(nil, res.Body, maxAnswer)
	}
	return res, err
}

// Query returns the value of a query now: a scalar, or the only series of a
// vector. The error is ErrEmpty, ErrNumber, ErrSeries, or says what else went wrong.
func (c *Client) Query(ctx context.Context, query string) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, c.o.Timeout)
	defer cancel()
	v, _, _, err := c.api.Query(ctx, query, time.Time{}, prometheus.WithTimeout(c.o.Timeout))
	if err != nil {
		return 0, c.failure(err)
	}
	switch v := v.(type) {
	case nil: // an answer of something else that is JSON
		return 0, c.failure(&prometheus.Error{Type: prometheus.ErrBadResponse, Msg: "it holds no result"})
	case *model.Scalar:
		return number(v.Value)
	case model.Vector:
		switch len(v) {
		case 0:
			return 0, ErrEmpty
		case 1:
			return number(v[0].Value)
		}
		return 0, fmt.Errorf("%w: %d series, such as %s; aggregate, e.g. with sum()", ErrSeries, len(v), labels(v[:min(named, len(v))]))
	}
	return 0, fmt.Errorf("%w: it is a %s, expected a scalar or an instant vector", ErrSeries, v.Type())
}

// failure says why a query has no answer.
func (c *Client) failure(err error) error {
	var refused *prometheus.Error
	var large *http.MaxBytesError
	var call *url.Error
	switch {
	case errors.As(err, &large):
		return fmt.Errorf("%w: it is larger than %d bytes; aggregate, e.g. with sum()", ErrSeries, large.Limit)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("ask Prometheus at %s: no answer within %s", c.o.URL, c.o.Timeout)
	case errors.As(err, &refused) && (refused.Type == prometheus.ErrBadData || refused.Type == prometheus.ErrExec || refused.Type == prometheus.ErrTimeout):
		return fmt.Errorf("ask Prometheus at %s: it refuses the query: %s", c.o.URL, refused.Msg)
	case errors.As(err, &refused):
		return fmt.Errorf("ask Prometheus at %s: its answer can't be used; is it a Prometheus, and is the credential right? %s", c.o.URL, refused.Msg)
	case errors.As(err, &call):
		err = call.Err // without the address, which is named already
	}
	return fmt.Errorf("ask Prometheus at %s: %w", c.o.URL, err)
}

func number(v model.SampleValue) (float64, error) {
	if f := float64(v); !math.IsNaN(f) && !math.IsInf(f, 0) {
		return f, nil
	}
	return 0, fmt.Errorf("%w: it is %q", ErrNumber, v)
}

// labels names series as Prometheus writes them.
func labels(all model.Vector) string {
	out := make([]string, len(all))
	for i, s := range all {
		out[i] = s.Metric.String()
	}
	return strings.Join(out, " and ")
}
