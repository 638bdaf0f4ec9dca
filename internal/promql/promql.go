// Package promql asks a server with the HTTP API of Prometheus for single values.
//
// It knows neither events nor rules: a query goes in, a number comes out, or an
// error that says in words for an operator why there is none. No answer is no
// number: an empty one, NaN, and several series are errors.
package promql

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
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
	o    Options
	url  string
	http *http.Client
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
	t := http.DefaultTransport.(*http.Transport).Clone()
	if o.CAFile != "" {
		pem, err := os.ReadFile(o.CAFile)
		if err != nil {
			return nil, fmt.Errorf("prometheus: read its certificate authority: %w", err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("prometheus: %s holds no certificate", o.CAFile)
		}
		t.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	return &Client{o: o, url: strings.TrimSuffix(o.URL, "/") + "/api/v1/query", http: &http.Client{
		Transport: t,
		// A token is for one server: it is not carried to where a redirect points.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// Query returns the value of a query now: a scalar, or the only series of a
// vector. The error is ErrEmpty, ErrNumber, ErrSeries, or says what else went wrong.
func (c *Client) Query(ctx context.Context, query string) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, c.o.Timeout)
	defer cancel()
	form := url.Values{"query": {query}, "timeout": {c.o.Timeout.String()}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url, strings.NewReader(form.Encode()))
	if err != nil {
		return 0, fmt.Errorf("ask Prometheus: %w", err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if err := c.authorize(req); err != nil {
		return 0, err
	}
	res, err := c.http.Do(req)
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			return 0, fmt.Errorf("ask Prometheus at %s: no answer within %s", c.o.URL, c.o.Timeout)
		}
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err
		}
		return 0, fmt.Errorf("ask Prometheus at %s: %w", c.o.URL, err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	switch {
	case err != nil:
		return 0, fmt.Errorf("ask Prometheus at %s: read its answer: %w", c.o.URL, err)
	case len(body) > maxAnswer:
		return 0, fmt.Errorf("%w: it is larger than %d bytes; aggregate, e.g. with sum()", ErrSeries, maxAnswer)
	}
	return c.parse(res, body)
}

func (c *Client) authorize(req *http.Request) error {
	secret := func(path string) (string, error) {
		b, err := os.ReadFile(path)
		if err != nil {
			return "", fmt.Errorf("log in to Prometheus: %w", err)
		}
		return strings.TrimSpace(string(b)), nil
	}
	switch {
	case c.o.TokenFile != "":
		token, err := secret(c.o.TokenFile)
		if err != nil {
			return err
		}
		req.Header.Set("Authorization", "Bearer "+token)
	case c.o.Username != "":
		password, err := secret(c.o.PasswordFile)
		if err != nil {
			return err
		}
		req.SetBasicAuth(c.o.Username, password)
	}
	return nil
}

// answer is that of /api/v1/query.
type answer struct {
	Status string `json:"status"`
	Error  string `json:"error"`
	Data   struct {
		ResultType string          `json:"resultType"`
		Result     json.RawMessage `json:"result"`
	} `json:"data"`
}

type series struct {
	Metric map[string]string `json:"metric"`
	Value  sample            `json:"value"`
}

// sample is [seconds, "value"].
type sample struct{ text string }

// UnmarshalJSON implements json.Unmarshaler.
func (s *sample) UnmarshalJSON(b []byte) error {
	var at float64
	pair := []any{&at, &s.text}
	if err := json.Unmarshal(b, &pair); err != nil {
		return err
	}
	if len(pair) != 2 {
		return fmt.Errorf("a sample has %d parts, expected 2", len(pair))
	}
	return nil
}

func (c *Client) parse(res *http.Response, body []byte) (float64, error) {
	var a answer
	err := json.Unmarshal(body, &a)
	switch {
	case res.StatusCode == http.StatusUnauthorized || res.StatusCode == http.StatusForbidden:
		return 0, fmt.Errorf("ask Prometheus at %s: it refuses the credential: %s", c.o.URL, res.Status)
	case err == nil && a.Status == "error":
		return 0, fmt.Errorf("ask Prometheus at %s: it refuses the query: %s", c.o.URL, a.Error)
	case res.StatusCode != http.StatusOK, err != nil, a.Status != "success":
		return 0, fmt.Errorf("ask Prometheus at %s: what answers is no Prometheus: %s", c.o.URL, res.Status)
	}
	switch a.Data.ResultType {
	case "scalar":
		var s sample
		if err := json.Unmarshal(a.Data.Result, &s); err != nil {
			return 0, fmt.Errorf("%w: %w", ErrSeries, err)
		}
		return number(s)
	case "vector":
		var all []series
		if err := json.Unmarshal(a.Data.Result, &all); err != nil {
			return 0, fmt.Errorf("%w: %w", ErrSeries, err)
		}
		switch len(all) {
		case 0:
			return 0, ErrEmpty
		case 1:
			return number(all[0].Value)
		}
		return 0, fmt.Errorf("%w: %d series, such as %s; aggregate, e.g. with sum()", ErrSeries, len(all), labels(all[:min(named, len(all))]))
	}
	return 0, fmt.Errorf("%w: it is a %s, expected a scalar or an instant vector", ErrSeries, a.Data.ResultType)
}

func number(s sample) (float64, error) {
	v, err := strconv.ParseFloat(s.text, 64)
	if err != nil || math.IsNaN(v) || math.IsInf(v, 0) {
		return 0, fmt.Errorf("%w: it is %q", ErrNumber, s.text)
	}
	return v, nil
}

// labels names series as Prometheus writes them.
func labels(all []series) string {
	var out []string
	for _, s := range all {
		var pairs []string
		for k, v := range s.Metric {
			if k != "__name__" {
				pairs = append(pairs, fmt.Sprintf("%s=%q", k, v))
			}
		}
		slices.Sort(pairs)
		out = append(out, s.Metric["__name__"]+"{"+strings.Join(pairs, ",")+"}")
	}
	return strings.Join(out, " and ")
}
