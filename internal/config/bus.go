package config

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
)

// maxSecretFile bounds what a file with a secret may hold.
const maxSecretFile = 64 << 10

// external are the keys that only an external NATS cluster has.
var external = []string{"bus.credentials_file", "bus.nkey_file", "bus.token_file", "bus.user", "bus.password_file", "bus.tls", "bus.provisioned"}

func (d *decoder) checkBus(b Bus) {
	if b.URL == "" {
		for _, key := range external {
			if d.has(key) {
				d.fail(key, "is for an external NATS cluster", "bus.url beside it")
			}
		}
		if b.Replicas > 1 {
			d.fail("bus.replicas", fmt.Sprintf("is %d, but the embedded server is alone", b.Replicas), "1, or bus.url of a NATS cluster")
		}
	} else {
		d.checkServers(b.URL)
		d.checkIdentity(b)
		d.checkPair("bus.tls", b.TLS)
		if d.has("bus.embedded") {
			d.fail("bus.embedded", "stands beside bus.url", "one of the two")
		}
	}
	d.checkEmbedded(b.Embedded)
}

// checkServers checks each URL of a list.
func (d *decoder) checkServers(list string) {
	seen := map[string]bool{}
	websocket := 0
	us := Bus{URL: list}.Servers()
	for _, u := range us {
		x, err := url.Parse(u)
		switch {
		case err != nil || x.Hostname() == "" || !slices.Contains([]string{"nats", "tls", "ws", "wss"}, x.Scheme):
			d.fail("bus.url", fmt.Sprintf("%q is no address of a NATS server", redact(u)), "nats://host:4222 or tls://host:4222, several with commas")
			continue
		case x.User != nil:
			// The value stays out of the message: it is a secret.
			at := d.problem("bus.url", "", "")
			d.add(Problem{File: d.file, Line: at.Line, Column: at.Column, Key: "bus.url",
				Message: "holds credentials", Expected: "bus.credentials_file, bus.nkey_file, bus.token_file, or bus.user and bus.password_file"})
		case seen[u]:
			d.fail("bus.url", fmt.Sprintf("%q stands there twice", u), "each server once")
		}
		seen[u] = true
		if x.Scheme == "ws" || x.Scheme == "wss" {
			websocket++
		}
	}
	if websocket > 0 && websocket < len(us) {
		d.fail("bus.url", "mixes WebSocket and other addresses", "all of one kind")
	}
}

// redact hides what may be a password.
func redact(u string) string {
	if i := strings.LastIndexByte(u, '@'); i >= 0 {
		return "…" + u[i:]
	}
	return u
}

// Servers are the addresses in URL.
func (b Bus) Servers() []string {
	var out []string
	for u := range strings.SplitSeq(b.URL, ",") {
		out = append(out, strings.TrimSpace(u))
	}
	return out
}

// checkIdentity finds more than one way to log in, and files that hold none.
func (d *decoder) checkIdentity(b Bus) {
	var ways []string
	for _, w := range []struct{ key, value string }{
		{"bus.credentials_file", b.CredentialsFile}, {"bus.nkey_file", b.NKeyFile}, {"bus.token_file", b.TokenFile}, {"bus.user", b.User},
	} {
		if w.value != "" {
			ways = append(ways, w.key)
		}
	}
	if len(ways) > 1 {
		d.fail(ways[1], fmt.Sprintf("stands beside %s", ways[0]), "one way to log in to NATS")
	}
	switch {
	case b.User != "" && b.PasswordFile == "":
		d.fail("bus.user", "has no password", "bus.password_file beside it")
	case b.User == "" && b.PasswordFile != "":
		d.fail("bus.password_file", "is the password of nobody", "bus.user beside it")
	}
	d.checkSecret("bus.token_file", b.TokenFile, nil, "a file with a token")
	d.checkSecret("bus.password_file", b.PasswordFile, nil, "a file with a password")
	d.checkSecret("bus.nkey_file", b.NKeyFile, func() error { _, err := nats.NkeyOptionFromSeed(b.NKeyFile); return err },
		"a seed of a user NKey (SU…), as 'nk -gen user' prints it")
	d.checkSecret("bus.credentials_file", b.CredentialsFile, func() error {
		text, err := os.ReadFile(b.CredentialsFile)
		if err != nil {
			return err
		}
		// A text without decoration is taken as the JWT itself.
		if jwt, err := nkeys.ParseDecoratedJWT(text); err != nil || strings.Count(jwt, ".") != 2 {
			return errors.New("no JWT")
		}
		_, err = nkeys.ParseDecoratedUserNKey(text)
		return err
	}, "a .creds file with the JWT and the seed of a user, as 'nsc generate creds' writes it")
}

// checkSecret finds a file without a secret in it. Its content never gets into
// a message. Files that can't be read were reported already.
func (d *decoder) checkSecret(key, path string, valid func() error, expected string) {
	if path == "" || d.keep {
		return
	}
	if _, err := os.Stat(path); err != nil {
		return
	}
	if _, err := ReadSecret(path); err != nil {
		d.fail(key, fmt.Sprintf("file %s %v", path, err), expected)
	} else if valid != nil && valid() != nil {
		d.fail(key, fmt.Sprintf("file %s holds something else", path), expected)
	}
}

// ReadSecret returns the content of a file that holds one secret, without
// surrounding blanks.
func ReadSecret(path string) (string, error) {
	f, err := os.Open(path) //nolint:gosec // the operator's own file names the operator's own files
	if err != nil {
		return "", fmt.Errorf("can't be read: %w", cause(err))
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSecretFile+1))
	switch s := strings.TrimSpace(string(b)); {
	case err != nil:
		return "", fmt.Errorf("can't be read: %w", cause(err))
	case len(b) > maxSecretFile:
		return "", fmt.Errorf("has more than %d bytes, which is no secret", maxSecretFile)
	case s == "":
		return "", errors.New("is empty")
	default:
		return s, nil
	}
}

// checkPair finds a certificate without its key, or the other way round.
func (d *decoder) checkPair(at string, t *ClientTLS) {
	switch {
	case t == nil:
	case t.CertFile != "" && t.KeyFile == "":
		d.fail(at+".cert_file", "has no private key", at+".key_file beside it")
	case t.CertFile == "" && t.KeyFile != "":
		d.fail(at+".key_file", "is the key of no certificate", at+".cert_file beside it")
	}
}

func (d *decoder) checkEmbedded(e Embedded) {
	if e.Listen == "" {
		for _, key := range []string{"bus.embedded.token_file", "bus.embedded.tls"} {
			if d.has(key) {
				d.fail(key, "is for others that connect", "bus.embedded.listen beside it")
			}
		}
		return
	}
	d.checkAddress("bus.embedded.listen", e.Listen)
	d.checkSecret("bus.embedded.token_file", e.TokenFile, nil, "a file with a token")
	host, _, err := net.SplitHostPort(e.Listen)
	if err == nil && e.TokenFile == "" && host != "" && !loopback(host) {
		d.fail("bus.embedded.listen", fmt.Sprintf("is %q, which other machines reach, and asks for no token: whoever connects could create and remove nodes", e.Listen),
			"bus.embedded.token_file beside it, or a loopback address such as 127.0.0.1:4222")
	}
}
