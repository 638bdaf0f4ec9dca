package events

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// SubjectRoot is the first token of every subject of the stream of record.
const SubjectRoot = "k3sas"

// isLabel reports whether s is an RFC 1123 label: lower-case letters, digits and
// '-' in between, at most 63 characters. Every event that is read is checked by
// this and by isSubdomain, hence no regular expression.
func isLabel(s string) bool { return len(s) <= 63 && isAlnumDash(s) }

// isSubdomain reports whether s is an RFC 1123 subdomain, as a Kubernetes node
// name is.
func isSubdomain(s string) bool {
	if len(s) > 253 {
		return false
	}
	for {
		part, rest, more := strings.Cut(s, ".")
		if !isAlnumDash(part) {
			return false
		}
		if !more {
			return true
		}
		s = rest
	}
}

// isAlnumDash reports whether s consists of lower-case letters, digits and '-',
// and neither begins nor ends with '-'.
func isAlnumDash(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z' || '0' <= c && c <= '9':
		case c == '-' && i > 0 && i < len(s)-1:
		default:
			return false
		}
	}
	return s != ""
}

// MaxPoolName is the longest pool name in characters: a node is named
// "<pool>-<10 characters>" and must fit a DNS label of 63.
const MaxPoolName = 52

// ValidateCluster reports whether name can be a cluster's name: a DNS label.
func ValidateCluster(name string) error {
	if !isLabel(name) {
		return fmt.Errorf("cluster: is %q, expected a DNS label (lower-case letters, digits and '-', at most 63)", name)
	}
	return nil
}

// ValidatePool reports whether name can be a pool's name: a DNS label of at
// most MaxPoolName characters.
func ValidatePool(name string) error {
	if len(name) > MaxPoolName || !isLabel(name) {
		return fmt.Errorf("pool: is %q, expected a DNS label of at most %d characters", name, MaxPoolName)
	}
	return nil
}

// EncodeKey turns a node name, or ClusterKey, into one subject token. Dots of
// a node name become '_', which never occurs in a Kubernetes name, so the
// encoding is reversible; a leading '_' marks a pseudo node.
func EncodeKey(key string) (string, error) {
	if key == ClusterKey {
		return key, nil
	}
	if !isSubdomain(key) {
		return "", fmt.Errorf("node: is %q, expected a Kubernetes node name (RFC 1123 subdomain) or %s", key, ClusterKey)
	}
	return strings.ReplaceAll(key, ".", "_"), nil
}

// DecodeKey is the inverse of EncodeKey.
func DecodeKey(token string) (string, error) {
	if token == ClusterKey {
		return token, nil
	}
	if strings.Contains(token, ".") {
		return "", fmt.Errorf("subject token %q holds a dot", token)
	}
	key := strings.ReplaceAll(token, "_", ".")
	if !isSubdomain(key) {
		return "", fmt.Errorf("subject token %q is no encoded node name", token)
	}
	return key, nil
}

// Subject returns the subject that e is published on:
// "k3sas.<cluster>.node.<key>.<noun>.<verb>". The stream puts the partition in
// front of it.
func Subject(e Event) (string, error) {
	def, ok := Lookup(e.Type())
	if !ok {
		return "", fmt.Errorf("type: %q is not in the catalogue", e.Type())
	}
	cluster, key, err := PartitionKey(e)
	if err != nil {
		return "", err
	}
	if err := ValidateCluster(cluster); err != nil {
		return "", err
	}
	token, err := EncodeKey(key)
	if err != nil {
		return "", err
	}
	suffix := def.Suffix()
	if Addressed(e.Type()) {
		if suffix, err = addressedTo(e); err != nil {
			return "", err
		}
	}
	return strings.Join([]string{SubjectRoot, cluster, "node", token, suffix}, "."), nil
}

// addressed are the types that only one handler reads: their payloads, and
// their subjects behind the first token, name it.
var addressed = []string{TypeTimerFired, TypeDeadletterRedriveRequested, TypeDeadletterDropRequested, TypeDeadletterRedriven}

// Addressed reports whether events of a type are for one handler, which they name.
func Addressed(typ string) bool { return slices.Contains(addressed, typ) }

// AddressedSuffix is how the subject of an addressed type ends for one handler
// ("*" for any), e.g. "timer.draining.fired".
func AddressedSuffix(typ, handler string) string {
	def, _ := Lookup(typ)
	noun, rest, _ := strings.Cut(def.Suffix(), ".")
	return noun + "." + handler + "." + rest
}

func addressedTo(e Event) (string, error) {
	var to struct {
		Handler string `json:"handler"`
	}
	if err := json.Unmarshal(e.Data(), &to); err != nil {
		return "", fmt.Errorf("data: %w", err)
	}
	// One token of a subject, whoever wrote the event.
	if !isLabel(to.Handler) {
		return "", fmt.Errorf("handler: is %q, expected the name of a handler", to.Handler)
	}
	return AddressedSuffix(e.Type(), to.Handler), nil
}

// Suffixes returns the subject endings that the named handler reads, in
// catalogue order: what its consumers are filtered by.
func Suffixes(handler string) []string {
	var out []string
	for _, d := range Catalog() {
		if d.ReadBy(handler) {
			out = append(out, d.Suffix())
		}
	}
	if len(out) > 0 {
		for _, typ := range addressed {
			out = append(out, AddressedSuffix(typ, handler))
		}
	}
	if handler == HandlerShadow {
		// Decision decides when a timer of its own fires, and the shadow beside it.
		out = append(out, AddressedSuffix(TypeTimerFired, HandlerDecision))
	}
	return out
}

// NodeName returns the name of the node that a claim creates:
// "<pool>-<10 characters of lower-case base32(claim id)>".
func NodeName(pool, claimID string) string {
	return pool + "-" + ID("node", claimID)[:10]
}
