package main

import (
	"context"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

const (
	// joinRetry is how long an agent waits before it tries to join again; k3s
	// waits 2 to 5 s.
	joinRetry = 2 * time.Second
	// joinTimeout bounds one attempt to reach the server.
	joinTimeout = 10 * time.Second
	// passwordHashRounds is low because the password is random, not chosen.
	passwordHashRounds = 1000
)

var errPasswordRejected = errors.New("Node password rejected, duplicate hostname or contents of '/etc/rancher/node/password' may not match server node-passwd entry, try enabling a unique node name with the --with-node-id flag") //nolint:staticcheck // k3s' own words

// join returns the server's CA once the server has accepted the token and the
// node's password. It retries until ctx ends: k3s, too, stays up and logs when
// it is refused.
func join(ctx context.Context, o agentOptions, passwordFile string) (caPEM []byte, err error) {
	password, err := nodePassword(passwordFile)
	if err != nil {
		return nil, fmt.Errorf("keep the node password: %w", err)
	}
	for {
		caPEM, err := serverCA(ctx, o.server, o.token)
		if err != nil {
			logf("error", "Failed to validate connection to cluster at %s: %v", o.server, err)
		} else if err = verifyPassword(ctx, o, caPEM, password); err == nil {
			return caPEM, nil
		} else {
			logf("error", "Waiting to retrieve agent configuration; server is not ready: %v", err)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(joinRetry):
		}
	}
}

// serverCA returns the certificate authority in the chain that the server
// presents. A token of the form K10<hash>::<user>:<password> pins it: the hash
// is the SHA-256 of the authority's PEM.
func serverCA(ctx context.Context, server, token string) ([]byte, error) {
	u, err := url.Parse(server)
	if err != nil {
		return nil, err
	}
	address := u.Host
	if u.Port() == "" {
		address = net.JoinHostPort(u.Hostname(), "443")
	}
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	// The chain is verified below, against the authority that the token names.
	dialer := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, ServerName: u.Hostname()}} //nolint:gosec // see above
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("failed to get CA certs: %w", err)
	}
	defer conn.Close()
	chain := conn.(*tls.Conn).ConnectionState().PeerCertificates
	authority := chain[len(chain)-1]
	caPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: authority.Raw})
	if want, pinned := tokenCAHash(token); pinned {
		sum := sha256.Sum256(caPEM)
		if got := hex.EncodeToString(sum[:]); got != want {
			return nil, fmt.Errorf("token CA hash does not match the Cluster CA certificate hash: %s != %s", want, got)
		}
	}
	roots := x509.NewCertPool()
	roots.AddCert(authority)
	if _, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, DNSName: u.Hostname()}); err != nil {
		return nil, fmt.Errorf("verify the server's certificate: %w", err)
	}
	return caPEM, nil
}

// tokenCAHash returns the CA hash of a full k3s token; a short token (only the
// password) pins nothing.
func tokenCAHash(token string) (string, bool) {
	rest, ok := strings.CutPrefix(token, "K10")
	if !ok {
		return "", false
	}
	hash, _, ok := strings.Cut(rest, "::")
	return hash, ok
}

// nodePassword reads the node's password, or makes one. It lies in the
// container's own layer: a restart keeps it, a new container has another.
func nodePassword(file string) (string, error) {
	if content, err := os.ReadFile(file); err == nil {
		return strings.TrimSpace(string(content)), nil
	} else if !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	random := make([]byte, 16)
	_, _ = rand.Read(random) // never fails, by its documentation
	password := hex.EncodeToString(random)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return "", err
	}
	return password, os.WriteFile(file, []byte(password+"\n"), 0o600)
}

// verifyPassword creates the node's password secret, or compares with it.
func verifyPassword(ctx context.Context, o agentOptions, caPEM []byte, password string) error {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	client, err := kubernetes.NewForConfig(&rest.Config{
		Host:            o.server,
		BearerToken:     o.token,
		TLSClientConfig: rest.TLSClientConfig{CAData: caPEM},
		ContentConfig:   rest.ContentConfig{ContentType: "application/json"},
	})
	if err != nil {
		return err
	}
	secrets := client.CoreV1().Secrets(metav1.NamespaceSystem)
	name := o.nodeName + ".node-password.k3s"
	immutable := true
	_, err = secrets.Create(ctx, &v1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Immutable:  &immutable,
		Data:       map[string][]byte{"hash": []byte(hashPassword(password))},
	}, metav1.CreateOptions{})
	if !apierrors.IsAlreadyExists(err) {
		return describe(err, o.server)
	}
	secret, err := secrets.Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return describe(err, o.server)
	}
	if !matchesHash(password, string(secret.Data["hash"])) {
		return errPasswordRejected
	}
	return nil
}

// describe words a refused token as k3s does.
func describe(err error, server string) error {
	if apierrors.IsUnauthorized(err) || apierrors.IsForbidden(err) {
		return fmt.Errorf("%s/v1-k3s/config: 401 Unauthorized: the server does not accept the token", server)
	}
	return err
}

// hashPassword returns $1:<salt>:<key>, k3s' layout.
func hashPassword(password string) string {
	salt := make([]byte, 8)
	_, _ = rand.Read(salt)
	return "$1:" + hex.EncodeToString(salt) + ":" + derive(password, salt)
}

func matchesHash(password, hash string) bool {
	parts := strings.Split(hash, ":")
	if len(parts) != 3 || parts[0] != "$1" {
		return false
	}
	salt, err := hex.DecodeString(parts[1])
	return err == nil && subtle.ConstantTimeCompare([]byte(derive(password, salt)), []byte(parts[2])) == 1
}

func derive(password string, salt []byte) string {
	key, err := pbkdf2.Key(sha256.New, password, salt, passwordHashRounds, sha256.Size)
	if err != nil {
		return "" // only for lengths that are not used here
	}
	return hex.EncodeToString(key)
}
