// Package auth decides who may call the HTTP interface: bearer tokens that
// stand in files and nowhere else.
package auth

import (
	"crypto/rand"
	"encoding/base32"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// tokenPrefix begins every token, so that secret scanners and our own redaction
// find one that got lost.
const tokenPrefix = "k3sas_"

// Key is a new bearer token.
type Key struct {
	// ID is the public part, 8 characters: it names the caller in logs, events
	// and the audit.
	ID string
	// Token is the secret: "k3sas_<id>_<256 random bits in hex>".
	Token string
}

// NewKey makes a token from the system's random source.
func NewKey() Key {
	var id [5]byte
	var secret [32]byte
	// crypto/rand.Read never fails: it ends the process instead.
	_, _ = rand.Read(id[:])
	_, _ = rand.Read(secret[:])
	name := strings.ToLower(base32.StdEncoding.EncodeToString(id[:]))
	return Key{ID: name, Token: tokenPrefix + name + "_" + hex.EncodeToString(secret[:])}
}

// WriteFile stores the token at path, readable by its owner alone. It never
// overwrites: a token in use would stop working without a word.
func (k Key) WriteFile(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600) //nolint:gosec // the operator names the file
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("write token: %s exists already; name another file, or remove it first if nothing uses it", path)
	}
	if err != nil {
		return fmt.Errorf("write token: %w", err)
	}
	_, err = f.WriteString(k.Token + "\n")
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write token: %w", err)
	}
	return nil
}

// idOf is the public part of a token, "" when it is not one of ours.
func idOf(token string) string {
	rest, ok := strings.CutPrefix(token, tokenPrefix)
	if !ok {
		return ""
	}
	id, secret, ok := strings.Cut(rest, "_")
	if !ok || id == "" || len(secret) < 32 {
		return ""
	}
	return id
}
