package config

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// maxReferencedFile bounds what ${file:path} reads.
const maxReferencedFile = 64 << 10

// lookup is where references are resolved; tests replace the environment.
type lookup struct {
	dir string // of the configuration file
	env func(string) (string, bool)
	// apart: the files that path-valued keys name need not be there.
	apart bool
	// plain says that it may hold no references.
	plain bool
}

func hasReference(s string) bool { return strings.Contains(s, "${") }

// resolve replaces ${env:NAME} and ${file:path}; "$${" stands for "${". The
// content of a file loses its final line break.
func (l lookup) resolve(s string) (string, error) {
	var out strings.Builder
	for {
		i := strings.Index(s, "${")
		if i < 0 {
			out.WriteString(s)
			return out.String(), nil
		}
		if i > 0 && s[i-1] == '$' {
			out.WriteString(s[:i-1] + "${")
			s = s[i+2:]
			continue
		}
		out.WriteString(s[:i])
		ref, rest, ok := strings.Cut(s[i+2:], "}")
		if !ok {
			return "", fmt.Errorf("reference %q has no closing brace", s[i:])
		}
		v, err := l.reference(ref)
		if err != nil {
			return "", err
		}
		out.WriteString(v)
		s = rest
	}
}

func (l lookup) reference(ref string) (string, error) {
	kind, name, _ := strings.Cut(ref, ":")
	switch {
	case l.plain:
		return "", errReference
	case kind == "env" && name != "":
		v, ok := l.env(name)
		if !ok {
			return "", fmt.Errorf("environment variable %s is not set", name)
		}
		return v, nil
	case kind == "file" && name != "":
		return l.read(name)
	}
	return "", fmt.Errorf("reference ${%s} is neither ${env:NAME} nor ${file:path}", ref)
}

func (l lookup) read(name string) (string, error) {
	if !filepath.IsAbs(name) {
		name = filepath.Join(l.dir, name)
	}
	f, err := os.Open(name) //nolint:gosec // the operator's own file names the operator's own files
	if err != nil {
		return "", fmt.Errorf("read referenced file: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxReferencedFile+1))
	if err != nil {
		return "", fmt.Errorf("read referenced file: %w", err)
	}
	if len(b) > maxReferencedFile {
		return "", fmt.Errorf("referenced file %s is larger than 64 KiB", name)
	}
	return strings.TrimRight(string(b), "\r\n"), nil
}
