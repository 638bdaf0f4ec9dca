package docker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

const (
	// sshTimeout bounds the connection to an SSH server, with its handshake.
	sshTimeout = 10 * time.Second
	// sshKeepAlive is how often an idle connection is tried. One that does not
	// answer for as long is given up, so that the next call makes a new one.
	sshKeepAlive = 15 * time.Second
	// defaultSocket is where an engine listens on the far side.
	defaultSocket = "/var/run/docker.sock"
)

// SSH names the files for an engine behind ssh://. Both are needed, and are read
// for each connection.
type SSH struct {
	KeyFile        string // private key, without a passphrase
	KnownHostsFile string // as OpenSSH writes it; a host that is not in it is refused
}

func (s SSH) validate() error {
	var errs []error
	for _, f := range []struct{ name, path string }{{"key file", s.KeyFile}, {"known hosts file", s.KnownHostsFile}} {
		if f.path == "" {
			errs = append(errs, fmt.Errorf("ssh: %s: is required for a host behind ssh://", f.name))
		} else if _, err := os.Stat(f.path); err != nil {
			errs = append(errs, fmt.Errorf("ssh: %s: %w", f.name, err))
		}
	}
	return errors.Join(errs...)
}

// sshDialer connects to the engine's socket on another machine through one SSH
// connection, which all calls share.
type sshDialer struct {
	server, user, socket string
	files                SSH

	mu     sync.Mutex
	client *ssh.Client
	failed error // why the last attempt to open the socket failed, nil if it did not
}

// newSSHDialer takes ssh://user@host[:port][/path/of/the/socket].
func newSSHDialer(u *url.URL, files SSH) *sshDialer {
	d := &sshDialer{server: u.Host, user: u.User.Username(), socket: u.Path, files: files}
	if u.Port() == "" {
		d.server = net.JoinHostPort(u.Hostname(), "22")
	}
	if d.socket == "" || d.socket == "/" {
		d.socket = defaultSocket
	}
	return d
}

// sshError says what is wrong and what to do.
type sshError struct{ text string }

func (e *sshError) Error() string { return e.text }

func (d *sshDialer) errorf(format string, args ...any) error {
	return &sshError{"SSH to " + d.user + "@" + d.server + ": " + fmt.Sprintf(format, args...)}
}

// DialContext opens the engine's socket.
func (d *sshDialer) DialContext(ctx context.Context, _, _ string) (net.Conn, error) {
	conn, err := d.dial(ctx)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failed = err
	return conn, err
}

// failure is why the last attempt to open the socket failed.
func (d *sshDialer) failure() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.failed
}

func (d *sshDialer) dial(ctx context.Context) (net.Conn, error) {
	for {
		client, fresh, err := d.connect(ctx)
		if err != nil {
			return nil, err
		}
		conn, err := client.DialContext(ctx, "unix", d.socket)
		var refused *ssh.OpenChannelError
		switch {
		case err == nil:
			return conn, nil
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case errors.As(err, &refused):
			return nil, d.errorf("the server does not open %s (%s): is the engine running there, may user %s use its socket, and does sshd allow it (AllowStreamLocalForwarding)?", d.socket, refused.Message, d.user)
		case fresh:
			return nil, d.errorf("the connection broke off: %v", err)
		}
		d.drop(client) // it was dead already
	}
}

// connect returns the connection; fresh says that it has just been made.
func (d *sshDialer) connect(ctx context.Context) (client *ssh.Client, fresh bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.client != nil {
		return d.client, false, nil
	}
	config, err := d.config()
	if err != nil {
		return nil, false, err
	}
	ctx, cancel := context.WithTimeout(ctx, sshTimeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", d.server)
	if err != nil {
		return nil, false, d.errorf("the server is not reachable: %v", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	c, channels, requests, err := ssh.NewClientConn(conn, d.server, config)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		_ = conn.Close()
		return nil, false, d.explain(err)
	}
	d.client = ssh.NewClient(c, channels, requests)
	go d.keepAlive(d.client)
	return d.client, true, nil
}

// config reads key and known hosts.
func (d *sshDialer) config() (*ssh.ClientConfig, error) {
	pem, err := os.ReadFile(d.files.KeyFile)
	if err != nil {
		return nil, d.errorf("key file: %v", err)
	}
	signer, err := ssh.ParsePrivateKey(pem)
	var locked *ssh.PassphraseMissingError
	switch {
	case errors.As(err, &locked):
		return nil, d.errorf("key file %s is protected by a passphrase, which nobody can enter here: make a key of its own without one (ssh-keygen -t ed25519 -N '')", d.files.KeyFile)
	case err != nil:
		return nil, d.errorf("key file %s is no private key: %v", d.files.KeyFile, err)
	}
	check, err := knownhosts.New(d.files.KnownHostsFile)
	if err != nil {
		return nil, d.errorf("known hosts file: %v", err)
	}
	return &ssh.ClientConfig{
		User: d.user, Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)},
		HostKeyCallback: check, HostKeyAlgorithms: knownAlgorithms(check, d.server),
	}, nil
}

// knownAlgorithms are those of the keys that the known hosts have of a server: it
// has keys of several kinds, and must be asked for one that can be compared. nil:
// it is not known.
func knownAlgorithms(check ssh.HostKeyCallback, server string) []string {
	var unlike *knownhosts.KeyError
	if !errors.As(check(server, &net.TCPAddr{}, noKey{}), &unlike) {
		return nil
	}
	var algorithms []string
	for _, known := range unlike.Want {
		if kind := known.Key.Type(); kind == ssh.KeyAlgoRSA {
			algorithms = append(algorithms, ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256)
		} else {
			algorithms = append(algorithms, kind)
		}
	}
	return algorithms
}

// noKey is like no key.
type noKey struct{}

func (noKey) Type() string                        { return "none" }
func (noKey) Marshal() []byte                     { return []byte("none") }
func (noKey) Verify([]byte, *ssh.Signature) error { return errors.New("no key") }

// explain words a failed handshake.
func (d *sshDialer) explain(err error) error {
	var key *knownhosts.KeyError
	var revoked *knownhosts.RevokedError
	host, port, _ := net.SplitHostPort(d.server)
	switch {
	case errors.As(err, &revoked):
		return d.errorf("its key is revoked in %s", d.files.KnownHostsFile)
	case errors.As(err, &key) && len(key.Want) == 0:
		return d.errorf("the server is not in %s: compare its fingerprint with what ssh-keygen -lf says there, and add it (ssh-keyscan -p %s %s >> %s)", d.files.KnownHostsFile, port, host, d.files.KnownHostsFile)
	case errors.As(err, &key):
		return d.errorf("the server's key is not the one in %s, line %d: it was set up anew, or another machine answers; find out which before you change the file", key.Want[0].Filename, key.Want[0].Line)
	case strings.Contains(err.Error(), "unable to authenticate"): // the library has no type for it
		return d.errorf("the server does not let user %s in with key %s: add its public part to authorized_keys there (%v)", d.user, d.files.KeyFile, err)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, net.ErrClosed):
		return d.errorf("the server did not finish the handshake within %s", sshTimeout)
	}
	return d.errorf("%v", err)
}

func (d *sshDialer) drop(client *ssh.Client) {
	_ = client.Close()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.client == client {
		d.client = nil
	}
}

// keepAlive ends a connection that no longer answers. It ends with it.
func (d *sshDialer) keepAlive(client *ssh.Client) {
	ended := make(chan struct{})
	go func() { _ = client.Wait(); close(ended) }()
	defer d.drop(client)
	ticker := time.NewTicker(sshKeepAlive)
	defer ticker.Stop()
	for {
		answered := make(chan error, 1)
		go func() {
			_, _, err := client.SendRequest("keepalive@openssh.com", true, nil)
			answered <- err
		}()
		for waits := true; waits; {
			select {
			case <-ended:
				return
			case err := <-answered:
				if err != nil {
					return
				}
				answered = nil
			case <-ticker.C:
				if answered != nil {
					return
				}
				waits = false
			}
		}
	}
}

// Close ends the connection.
func (d *sshDialer) Close() error {
	d.mu.Lock()
	client := d.client
	d.mu.Unlock()
	if client != nil {
		d.drop(client)
	}
	return nil
}
