package docker

import (
	"cmp"
	"encoding/base64"
	"net/url"
	"regexp"
	"slices"
	"strings"
)

const redacted = "[redacted]"

// secretPatterns match what is a secret whatever its value: full k3s tokens,
// bootstrap tokens, and credentials of HTTP headers.
var secretPatterns = []struct {
	match *regexp.Regexp
	with  string
}{
	// K10<hash of the CA>::<user>:<secret>; the hash is public, the rest is not.
	{regexp.MustCompile(`K10[0-9A-Za-z]*::[^\s"'` + "`" + `,;]+`), redacted},
	{regexp.MustCompile(`(?i)\b(basic|bearer)(\s+)[A-Za-z0-9+/=._~-]{8,}`), "${1}${2}" + redacted},
	{regexp.MustCompile(`\b[a-z0-9]{6}\.[a-z0-9]{16}\b`), redacted},
}

// redactor takes secrets out of text.
type redactor struct{ literal *strings.Replacer }

// newRedactor knows the forms in which a token may turn up in an agent's output:
// as it is, its secret part alone, with its user, escaped for an URL, in JSON or
// Go quotes, and in base 64 (HTTP's basic authentication).
func newRedactor(tokens ...string) redactor {
	forms := map[string]bool{}
	add := func(s string) {
		forms[s] = true
		for _, e := range []*base64.Encoding{base64.StdEncoding, base64.RawStdEncoding, base64.URLEncoding, base64.RawURLEncoding} {
			forms[e.EncodeToString([]byte(s))] = true
		}
		forms[url.QueryEscape(s)] = true
		forms[url.PathEscape(s)] = true
	}
	for _, token := range tokens {
		if token == "" {
			continue
		}
		add(token)
		secret := token
		if _, after, ok := strings.Cut(token, "::"); ok {
			add(after) // user:secret
			if _, after, ok = strings.Cut(after, ":"); ok && after != "" {
				secret = after
			}
		}
		add(secret)
		for _, user := range []string{"node", "server"} {
			add(user + ":" + secret)
		}
	}
	// Longest first: the replacer takes the first of its pairs that matches.
	sorted := make([]string, 0, len(forms))
	for f := range forms {
		if f != "" {
			sorted = append(sorted, f)
		}
	}
	slices.SortFunc(sorted, func(a, b string) int { return cmp.Or(cmp.Compare(len(b), len(a)), cmp.Compare(a, b)) })
	pairs := make([]string, 0, 2*len(sorted))
	for _, f := range sorted {
		pairs = append(pairs, f, redacted)
	}
	return redactor{literal: strings.NewReplacer(pairs...)}
}

func (r redactor) redact(s string) string {
	for _, p := range secretPatterns {
		s = p.match.ReplaceAllString(s, p.with)
	}
	return r.literal.Replace(s)
}

// lastBytes returns the end of s, at most n bytes, from the start of a line or
// at least of a character.
func lastBytes(s string, n int) string {
	if n <= 0 {
		return ""
	}
	if len(s) <= n {
		return s
	}
	s = s[len(s)-n:]
	if _, after, ok := strings.Cut(s, "\n"); ok && after != "" {
		return after
	}
	return strings.ToValidUTF8(s, "")
}

// tail keeps the last limit bytes that were written to it.
type tail struct {
	limit int
	buf   []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.buf = append(t.buf, p...)
	if len(t.buf) > 2*t.limit {
		t.buf = append(t.buf[:0], t.buf[len(t.buf)-t.limit:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	return string(t.buf[max(0, len(t.buf)-t.limit):])
}
