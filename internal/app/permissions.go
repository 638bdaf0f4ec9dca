package app

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
)

// Formats of WritePermissions.
const (
	FormatNATS = "nats"
	FormatJSON = "json"
)

// WritePermissions writes the permissions of NATS users. Each user is named by
// the roles that its process runs, joined by commas; none means one user for
// each role.
func WritePermissions(w io.Writer, format string, users []string) error {
	if len(users) == 0 {
		users = Roles()
	}
	perms := map[string]bus.Permissions{}
	var names []string
	for _, u := range users {
		p, err := Permissions(strings.Split(u, ",")...)
		if err != nil {
			return err
		}
		name := strings.ReplaceAll(u, ",", "_")
		if _, twice := perms[name]; !twice {
			names = append(names, name)
		}
		perms[name] = p
	}
	if format == FormatJSON {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		return enc.Encode(perms)
	}
	return writeServerConfig(w, names, perms)
}

// writeServerConfig writes variables in the syntax of the NATS server, one for
// each user.
func writeServerConfig(w io.Writer, names []string, perms map[string]bus.Permissions) error {
	var b strings.Builder
	b.WriteString(`# What k3s-autoscaler needs on NATS, and no more. Write it anew after an upgrade:
# 'k3s-autoscaler bus permissions'. To use it, include it in the configuration of
# every NATS server, and give each user its permissions:
#
#   include ./k3s-autoscaler-permissions.conf
#   authorization {
#     users: [
#       # runs 'k3s-autoscaler bus provision'
#       {user: admin, password: "$2a$11$…"}
`)
	for _, n := range names {
		fmt.Fprintf(&b, "#       {user: %s, password: \"$2a$11$…\", permissions: $%s}\n", n, variable(n))
	}
	b.WriteString("#     ]\n#   }\n#\n# The server refuses a variable that nobody uses: '--role' writes some of them.\n")
	for _, n := range names {
		p := perms[n]
		fmt.Fprintf(&b, "\n%s: {\n", variable(n))
		fmt.Fprintf(&b, "  publish: {\n")
		writeSubjects(&b, "allow", p.Publish.Allow)
		writeSubjects(&b, "deny", p.Publish.Deny)
		fmt.Fprintf(&b, "  }\n  subscribe: {\n")
		writeSubjects(&b, "allow", p.Subscribe.Allow)
		fmt.Fprintf(&b, "  }\n}\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func variable(name string) string { return "K3SAS_" + strings.ToUpper(name) }

func writeSubjects(b *strings.Builder, key string, subjects []string) {
	if len(subjects) == 0 {
		return
	}
	fmt.Fprintf(b, "    %s: [\n", key)
	for _, s := range slices.Sorted(slices.Values(subjects)) {
		fmt.Fprintf(b, "      %q\n", s)
	}
	fmt.Fprintf(b, "    ]\n")
}
