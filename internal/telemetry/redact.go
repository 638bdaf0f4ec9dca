package telemetry

import "regexp"

const redacted = "(redacted)"

// What secrets look like, whatever they are called.
var secretPatterns = []struct {
	pattern *regexp.Regexp
	with    string
}{
	// Our own bearer tokens; the public id stays.
	{regexp.MustCompile(`(k3sas_[a-z0-9]+_)[0-9a-fA-F]{16,}`), "${1}" + redacted},
	// k3s join tokens: K10<hash of the CA>::<user>:<password>.
	{regexp.MustCompile(`K10[0-9a-f]{16,}::[A-Za-z0-9_.-]+:[^\s"']+`), "K10" + redacted},
	// kubeadm-style bootstrap tokens, which k3s accepts too.
	{regexp.MustCompile(`\b([a-z0-9]{6})\.[a-z0-9]{16}\b`), "${1}." + redacted},
	{regexp.MustCompile(`(?i)(bearer\s+)[A-Za-z0-9._~+/=-]{8,}`), "${1}" + redacted},
	{regexp.MustCompile(`(?i)(K3S_(?:AGENT_)?TOKEN=)[^\s"']+`), "${1}" + redacted},
	// Credentials in a URL.
	{regexp.MustCompile(`([a-z][a-z0-9+.-]*://[^/\s:@]*:)[^/\s@]+@`), "${1}" + redacted + "@"},
	// JSON web tokens, as service accounts have them.
	{regexp.MustCompile(`\beyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}`), redacted},
	{regexp.MustCompile(`(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----`), redacted},
}

// Redact takes what looks like a secret out of a text.
func Redact(s string) string {
	for _, p := range secretPatterns {
		s = p.pattern.ReplaceAllString(s, p.with)
	}
	return s
}
