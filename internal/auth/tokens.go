package auth

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

const (
	// minToken is the shortest token that is accepted from a file, in
	// characters: 128 bits in hex. A shorter one could be guessed.
	minToken = 32
	// maxTokenFile bounds a token file, in bytes.
	maxTokenFile = 64 << 10
)

// Errors of Authenticate: why a call is refused.
var (
	ErrNoToken      = errors.New("no bearer token")
	ErrUnknownToken = errors.New("unknown token")
)

// Caller is who calls.
type Caller struct {
	// Name is the public part of the token, or the name of its file for a token
	// that 'key new' did not make.
	Name string
}

// Tokens are the tokens that may call. It is safe for concurrent use.
type Tokens struct {
	log *slog.Logger

	mu    sync.Mutex
	files []tokenFile
}

type tokenFile struct {
	path    string
	modTime time.Time
	size    int64
	ok      bool
	tokens  []storedToken
}

type storedToken struct {
	hash [sha256.Size]byte
	name string
}

// Open reads the token files: one token a line, '#' begins a comment. Each is
// read again as soon as it changes. A file that can't be read, or holds a token
// that is too short, is an error here; later it only stops being accepted.
func Open(files []string, log *slog.Logger) (*Tokens, error) {
	t := &Tokens{log: log}
	var errs []error
	for _, path := range files {
		f := tokenFile{path: path}
		if err := f.load(); err != nil {
			errs = append(errs, err)
		}
		t.files = append(t.files, f)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("token files: %w", err)
	}
	return t, nil
}

// SetFiles replaces the list of files, e.g. after a reload of the configuration.
func (t *Tokens) SetFiles(files []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	next := make([]tokenFile, len(files))
	for i, path := range files {
		next[i] = tokenFile{path: path}
	}
	t.files = next
}

// Authenticate returns the caller that an Authorization header stands for. The
// comparison takes the same time whatever the token is.
func (t *Tokens) Authenticate(header string) (Caller, error) {
	scheme, token, ok := strings.Cut(header, " ")
	token = strings.TrimSpace(token)
	if !ok || !strings.EqualFold(scheme, "Bearer") || token == "" {
		return Caller{}, ErrNoToken
	}
	hash := sha256.Sum256([]byte(token))
	t.mu.Lock()
	defer t.mu.Unlock()
	var found *storedToken
	for i := range t.files {
		t.refresh(&t.files[i])
		for j := range t.files[i].tokens {
			if subtle.ConstantTimeCompare(t.files[i].tokens[j].hash[:], hash[:]) == 1 {
				found = &t.files[i].tokens[j]
			}
		}
	}
	if found == nil {
		return Caller{}, ErrUnknownToken
	}
	return Caller{Name: found.name}, nil
}

// refresh reads a file again when it has changed; what can't be read grants
// nothing.
func (t *Tokens) refresh(f *tokenFile) {
	st, err := os.Stat(f.path)
	if err == nil && f.ok && st.ModTime().Equal(f.modTime) && st.Size() == f.size {
		return
	}
	was := f.ok
	if err := f.load(); err != nil {
		if was {
			t.log.Error("token file can't be used any more, its tokens are refused", "file", f.path, "error", err)
		}
		return
	}
	t.log.Info("token file read", "file", f.path, "tokens", len(f.tokens))
}

func (f *tokenFile) load() error {
	f.ok, f.tokens = false, nil
	file, err := os.Open(f.path)
	if err != nil {
		return fmt.Errorf("read token file: %w", err)
	}
	defer file.Close()
	st, err := file.Stat()
	if err != nil {
		return fmt.Errorf("read token file: %w", err)
	}
	data, err := io.ReadAll(io.LimitReader(file, maxTokenFile+1))
	if err != nil {
		return fmt.Errorf("read token file: %w", err)
	}
	if len(data) > maxTokenFile {
		return fmt.Errorf("token file %s is larger than 64 KiB", f.path)
	}
	tokens, err := parseTokens(f.path, data)
	if err != nil {
		return err
	}
	f.ok, f.modTime, f.size, f.tokens = true, st.ModTime(), st.Size(), tokens
	return nil
}

func parseTokens(path string, data []byte) ([]storedToken, error) {
	var out []storedToken
	s := bufio.NewScanner(bytes.NewReader(data))
	s.Buffer(nil, maxTokenFile+1)
	for line := 1; s.Scan(); line++ {
		text := strings.TrimSpace(s.Text())
		if text == "" || strings.HasPrefix(text, "#") {
			continue
		}
		if len(text) < minToken || strings.ContainsAny(text, " \t") {
			return nil, fmt.Errorf("token file %s, line %d: expected a token of at least %d characters without spaces, as 'k3s-autoscaler key new' makes them", path, line, minToken)
		}
		name := idOf(text)
		if name == "" {
			base := filepath.Base(path)
			name = strings.TrimSuffix(base, filepath.Ext(base))
		}
		out = append(out, storedToken{hash: sha256.Sum256([]byte(text)), name: name})
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("token file %s holds no token; make one with 'k3s-autoscaler key new'", path)
	}
	return out, nil
}
