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

	"sigs.k8s.io/yaml"
)

const (
	// tokenPath is where an agent finds its token. It is not under /run, which is
	// an in-memory file system that hides what was copied before the start.
	tokenPath = "/etc/k3s-autoscaler/token"

	maxTokenBytes = 4096

	// registriesPath is where k3s looks for mirrors and credentials of registries.
	registriesPath = "/etc/rancher/k3s/registries.yaml"

	maxRegistriesBytes = 1 << 20
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

// files are what is put into a container before its first start.
type files struct {
	token      string
	registries []byte // nil: none
}

// files reads them from their sources.
func (o Options) files() (files, error) {
	token, err := readToken(o.TokenFile)
	if err != nil {
		return files{}, err
	}
	registries, err := readRegistries(o.RegistriesFile)
	return files{token: token, registries: registries}, err
}

// readRegistries reads a registries.yaml as k3s takes it; "" is none. The error
// never holds what was read: it may be credentials.
func readRegistries(file string) ([]byte, error) {
	if file == "" {
		return nil, nil
	}
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("registries file: %w", err)
	}
	var known struct {
		Mirrors map[string]any `json:"mirrors"`
		Configs map[string]any `json:"configs"`
		Auths   map[string]any `json:"auths"`
	}
	switch err := yaml.UnmarshalStrict(content, &known); {
	case len(content) > maxRegistriesBytes:
		return nil, fmt.Errorf("registries file: %s is longer than %d bytes", file, maxRegistriesBytes)
	case err != nil:
		return nil, fmt.Errorf("registries file: %s is no registries.yaml of k3s, expected YAML with mirrors and configs", file)
	case len(known.Mirrors)+len(known.Configs)+len(known.Auths) == 0:
		return nil, fmt.Errorf("registries file: %s has neither mirrors nor configs", file)
	}
	return content, nil
}

// archive is a tar archive, to be unpacked in /, of files that root alone may
// read.
func (f files) archive(now time.Time) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	var errs []error
	add := func(file string, dirMode int64, content []byte) {
		name := strings.TrimPrefix(file, "/")
		errs = append(errs,
			w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: path.Dir(name) + "/", Mode: dirMode, ModTime: now}),
			w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o400, Size: int64(len(content)), ModTime: now}))
		_, err := w.Write(content)
		errs = append(errs, err)
	}
	add(tokenPath, 0o700, []byte(f.token))
	if f.registries != nil {
		add(registriesPath, 0o755, f.registries)
	}
	if err := errors.Join(append(errs, w.Close())...); err != nil {
		return nil, fmt.Errorf("pack the files of the machine: %w", err)
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
