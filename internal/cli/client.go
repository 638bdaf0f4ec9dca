package cli

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
)

const (
	defaultServer = "http://127.0.0.1:8080"
	callTimeout   = 20 * time.Second
	// maxAnswer bounds what is read of an answer, in bytes.
	maxAnswer = 64 << 20
)

// client talks to the API.
type client struct {
	base      *url.URL
	from      string // where the address came from
	token     string
	tokenFile string
	http      *http.Client
}

// settings is the client's own configuration file.
type settings struct {
	Server    string `yaml:"server"`
	TokenFile string `yaml:"token_file"`
	CAFile    string `yaml:"ca_file"`
}

func (a *app) settings() (settings, string, error) {
	path := filepath.Join(a.ConfigDir, "config.yaml")
	data, err := os.ReadFile(path) //nolint:gosec // the user's own file
	if errors.Is(err, fs.ErrNotExist) {
		return settings{}, path, nil
	}
	var s settings
	if err == nil {
		err = yaml.UnmarshalWithOptions(data, &s, yaml.Strict())
	}
	if err != nil {
		return s, path, usagef("read %s: %w", path, err)
	}
	for _, p := range []*string{&s.TokenFile, &s.CAFile} {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(a.ConfigDir, *p)
		}
	}
	return s, path, nil
}

// choice is the first of the values that is set, and where it came from.
func choice(pairs ...string) (value, from string) {
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i] != "" {
			return pairs[i], pairs[i+1]
		}
	}
	return "", ""
}

// connect finds the server and the token.
func (a *app) connect() (*client, error) {
	s, path, err := a.settings()
	if err != nil {
		return nil, err
	}
	c := &client{}
	var server string
	server, c.from = choice(a.server, "--server", a.Getenv("K3S_AUTOSCALER_SERVER"), "K3S_AUTOSCALER_SERVER", s.Server, path, defaultServer, "the default")
	if !strings.Contains(server, "://") {
		server = "http://" + server
	}
	c.base, err = url.Parse(strings.TrimSuffix(server, "/"))
	if err != nil || c.base.Host == "" || (c.base.Scheme != "http" && c.base.Scheme != "https") {
		return nil, usagef("server %q (from %s) is no address; expected e.g. %s", server, c.from, defaultServer)
	}
	var tokenFrom string
	c.tokenFile, tokenFrom = choice(a.tokenFile, "--token-file", a.Getenv("K3S_AUTOSCALER_TOKEN_FILE"), "K3S_AUTOSCALER_TOKEN_FILE", s.TokenFile, path)
	if c.tokenFile == "" {
		return nil, usagef("no token: name its file with --token-file, K3S_AUTOSCALER_TOKEN_FILE, or token_file in %s; 'k3s-autoscaler key new' makes one", path)
	}
	if c.token, err = readToken(c.tokenFile); err != nil {
		return nil, usagef("token file (from %s): %w", tokenFrom, err)
	}
	ca, caFrom := choice(a.caFile, "--ca-file", a.Getenv("K3S_AUTOSCALER_CA_FILE"), "K3S_AUTOSCALER_CA_FILE", s.CAFile, path)
	if c.http, err = a.transport(ca); err != nil {
		return nil, usagef("certificate authority (from %s): %w", caFrom, err)
	}
	return c, nil
}

// readToken returns the first token of a file.
func readToken(path string) (string, error) {
	data, err := os.ReadFile(path) //nolint:gosec // the user names the file
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(data)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			return line, nil
		}
	}
	return "", fmt.Errorf("%s is empty", path)
}

func (a *app) transport(caFile string) (*http.Client, error) {
	if a.HTTP != nil {
		return a.HTTP, nil
	}
	t := http.DefaultTransport.(*http.Transport).Clone()
	if caFile != "" {
		pem, err := os.ReadFile(caFile) //nolint:gosec // the user names the file
		if err != nil {
			return nil, err
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no certificate", caFile)
		}
		t.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	// A token is for one server: it is not carried to where a redirect points.
	return &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}, nil
}

// problem is what the server says is wrong.
type problem struct {
	Status int    `json:"status"`
	Title  string `json:"title"`
	Detail string `json:"detail"`
	Errors []struct {
		Message  string `json:"message"`
		Location string `json:"location"`
	} `json:"errors"`
}

func (c *client) request(ctx context.Context, method, path string, query url.Values, body io.Reader) (*http.Request, error) {
	u := *c.base
	u.Path += path
	u.RawQuery = query.Encode()
	r, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", u.Redacted(), err)
	}
	r.Header.Set("Authorization", "Bearer "+c.token)
	return r, nil
}

// send returns the answer, or an error that says what to do.
func (c *client) send(r *http.Request) (*http.Response, error) {
	res, err := c.http.Do(r)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err
		}
		if errors.Is(err, context.Canceled) {
			return nil, err
		}
		return nil, fmt.Errorf("the autoscaler at %s (from %s) can't be reached: %w\nIs 'k3s-autoscaler run' up, and is this the address of api.listen? Another one is given with --server or K3S_AUTOSCALER_SERVER", c.base.Redacted(), c.from, err)
	}
	if res.StatusCode/100 == 2 {
		return res, nil
	}
	defer res.Body.Close()
	return nil, c.refused(res)
}

// refused turns an answer into an error.
func (c *client) refused(res *http.Response) error {
	var p problem
	data, _ := io.ReadAll(io.LimitReader(res.Body, 1<<20)) // what can't be read is not shown
	if json.Unmarshal(data, &p) != nil || p.Status == 0 {
		return fmt.Errorf("the server at %s answered %s, which the autoscaler never does; is it the right address (from %s)?", c.base.Redacted(), res.Status, c.from)
	}
	if res.StatusCode == http.StatusUnauthorized {
		return fmt.Errorf("the server at %s does not know the token of %s.\nName the file of a token that is in its api.token_files with --token-file or K3S_AUTOSCALER_TOKEN_FILE", c.base.Redacted(), c.tokenFile)
	}
	text := p.Detail
	if text == "" {
		text = p.Title
	}
	for _, e := range p.Errors {
		if !strings.Contains(text, e.Message) {
			text += "\n  " + strings.TrimPrefix(e.Location+": ", ": ") + e.Message
		}
	}
	f := &failure{err: errors.New(text), code: ExitFailure, status: res.StatusCode}
	if res.StatusCode == http.StatusUnprocessableEntity || res.StatusCode == http.StatusBadRequest {
		f.code = ExitUsage
	}
	return f
}

// get decodes the answer to a query into v.
func (c *client) get(ctx context.Context, path string, query url.Values, v any) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r, err := c.request(ctx, http.MethodGet, path, query, nil)
	if err != nil {
		return err
	}
	return c.decode(r, v)
}

// post sends a structured CloudEvent.
func (c *client) post(ctx context.Context, event []byte, v any) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r, err := c.request(ctx, http.MethodPost, "/v1/events", nil, bytes.NewReader(event))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/cloudevents+json")
	return c.decode(r, v)
}

// postJSON sends v's request and decodes the answer.
func (c *client) postJSON(ctx context.Context, path string, in, v any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("encode the request: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r, err := c.request(ctx, http.MethodPost, path, nil, bytes.NewReader(body))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/json")
	return c.decode(r, v)
}

func (c *client) decode(r *http.Request, v any) error {
	res, err := c.send(r)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if err := json.NewDecoder(io.LimitReader(res.Body, maxAnswer)).Decode(v); err != nil {
		return fmt.Errorf("read the answer of %s: %w", r.URL.Redacted(), err)
	}
	return nil
}
