package docker

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"
	"unicode"
)

const (
	// tokenPath is where an agent finds its token. It is not under /run, which is
	// an in-memory file system that hides what was copied before the start.
	tokenPath = "/etc/k3s-autoscaler/token"

	maxTokenBytes = 4096
)

// readToken reads a join token: one line, without spaces. The error never
// holds what was read.
func readToken(file string) (string, error) {
	if file == "" {
		return "", errors.New("token file: is not set")
	}
	f, err := os.Open(file)
	if err != nil {
		return "", fmt.Errorf("token file: %w", err)
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, maxTokenBytes+1))
	if err != nil {
		return "", fmt.Errorf("token file: read %s: %w", file, err)
	}
	token := strings.TrimSpace(string(content))
	switch {
	case token == "":
		return "", fmt.Errorf("token file: %s is empty", file)
	case len(content) > maxTokenBytes:
		return "", fmt.Errorf("token file: %s is longer than %d bytes, which no token is", file, maxTokenBytes)
	case strings.ContainsFunc(token, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }):
		return "", fmt.Errorf("token file: %s holds more than one word, expected a token alone", file)
	}
	return token, nil
}

// tokenArchive is a tar archive, to be unpacked in /, of the token as a file
// that root alone may read.
func tokenArchive(token string, now time.Time) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	dir := path.Dir(tokenPath)
	err := errors.Join(
		w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: strings.TrimPrefix(dir, "/") + "/", Mode: 0o700, ModTime: now}),
		w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: strings.TrimPrefix(tokenPath, "/"), Mode: 0o400, Size: int64(len(token)), ModTime: now}),
	)
	if err == nil {
		_, err = io.WriteString(w, token)
	}
	if err = errors.Join(err, w.Close()); err != nil {
		return nil, fmt.Errorf("pack the join token: %w", err)
	}
	return b.Bytes(), nil
}

// tokenFromArchive reads the token back from what the engine returns for
// tokenPath.
func tokenFromArchive(r io.Reader) (string, error) {
	t := tar.NewReader(r)
	for {
		h, err := t.Next()
		if err != nil {
			return "", fmt.Errorf("unpack the machine's token: %w", err)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		content, err := io.ReadAll(io.LimitReader(t, maxTokenBytes))
		return strings.TrimSpace(string(content)), err
	}
}
