package docker

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

// sshServer lets one key in and opens sockets of this machine, as sshd does.
type sshServer struct {
	address string
	host    ssh.Signer
	files   SSH
}

func newKey(t *testing.T, passphrase string) (ssh.Signer, string) {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	block, err := ssh.MarshalPrivateKey(private, "")
	if passphrase != "" {
		block, err = ssh.MarshalPrivateKeyWithPassphrase(private, "", []byte(passphrase))
	}
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "key")
	require.NoError(t, os.WriteFile(file, pem.EncodeToMemory(block), 0o600))
	signer, err := ssh.NewSignerFromKey(private)
	require.NoError(t, err)
	return signer, file
}

func newSSHServer(t *testing.T) *sshServer {
	t.Helper()
	s := &sshServer{}
	var user ssh.Signer
	s.host, _ = newKey(t, "")
	user, s.files.KeyFile = newKey(t, "")
	config := &ssh.ServerConfig{PublicKeyCallback: func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		if string(key.Marshal()) != string(user.PublicKey().Marshal()) {
			return nil, errors.New("not this one")
		}
		return &ssh.Permissions{}, nil
	}}
	config.AddHostKey(s.host)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	s.address = listener.Addr().String()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go serveSSH(conn, config)
		}
	}()
	s.files.KnownHostsFile = s.known(t, s.host)
	return s
}

// known is a known hosts file that has this key of the server.
func (s *sshServer) known(t *testing.T, key ssh.Signer) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "known_hosts")
	line := knownhosts.Line([]string{knownhosts.Normalize(s.address)}, key.PublicKey())
	require.NoError(t, os.WriteFile(file, []byte(line+"\n"), 0o600))
	return file
}

func serveSSH(conn net.Conn, config *ssh.ServerConfig) {
	_, channels, requests, err := ssh.NewServerConn(conn, config)
	if err != nil {
		return
	}
	go ssh.DiscardRequests(requests)
	for c := range channels {
		var to struct {
			Path, Reserved string
			Zero           uint32
		}
		if c.ChannelType() != "direct-streamlocal@openssh.com" || ssh.Unmarshal(c.ExtraData(), &to) != nil {
			_ = c.Reject(ssh.UnknownChannelType, "no")
			continue
		}
		socket, err := net.Dial("unix", to.Path)
		if err != nil {
			_ = c.Reject(ssh.ConnectionFailed, "open failed")
			continue
		}
		channel, more, err := c.Accept()
		if err != nil {
			continue
		}
		go ssh.DiscardRequests(more)
		go func() { _, _ = io.Copy(channel, socket); _ = channel.CloseWrite() }()
		go func() { _, _ = io.Copy(socket, channel); _ = socket.Close() }()
	}
}

func TestEngineIsReachedBySSH(t *testing.T) {
	t.Parallel()
	s, e := newSSHServer(t), newEngine(t, "pi4")
	o := options(t)
	o.Hosts = []Host{{Name: "attic", Address: "ssh://me@" + s.address + e.socket, SSH: s.files}}
	p := newProvider(t, o)
	m, err := p.Create(t.Context(), named("a"))
	require.NoError(t, err)
	require.Equal(t, "attic", m.Host)

	// The connection breaks, as when the server is restarted.
	d := p.hosts[0].dialer
	d.mu.Lock()
	broken := d.client
	d.mu.Unlock()
	require.NoError(t, broken.Close())
	p.hosts[0].api.HTTPClient().CloseIdleConnections()
	_, err = p.Get(t.Context(), m.Name)
	require.NoError(t, err, "the next call makes a new one")
}

func TestSSHSaysWhatIsWrongAndWhatToDo(t *testing.T) {
	t.Parallel()
	s, e := newSSHServer(t), newEngine(t, "pi4")
	other, otherFile := newKey(t, "")
	_, locked := newKey(t, "secret")
	empty := writeToken(t, "")
	for name, tc := range map[string]struct {
		change func(h *Host)
		says   string
	}{
		"the server is unknown":     {func(h *Host) { h.SSH.KnownHostsFile = empty }, "is not in " + empty + ": compare its fingerprint"},
		"the server is another one": {func(h *Host) { h.SSH.KnownHostsFile = s.known(t, other) }, "the server's key is not the one in "},
		"the key is not let in":     {func(h *Host) { h.SSH.KeyFile = otherFile }, "does not let user me in with key " + otherFile},
		"the key has a passphrase":  {func(h *Host) { h.SSH.KeyFile = locked }, "is protected by a passphrase"},
		"the key is none":           {func(h *Host) { h.SSH.KeyFile = empty }, "is no private key"},
		"there is no socket":        {func(h *Host) { h.Address += "x" }, "the server does not open " + e.socket + "x"},
		"nobody listens":            {func(h *Host) { h.Address = "ssh://me@127.0.0.1:1" }, "SSH to me@127.0.0.1:1: the server is not reachable"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := options(t)
			o.Hosts = []Host{{Name: "attic", Address: "ssh://me@" + s.address + e.socket, SSH: s.files}}
			tc.change(&o.Hosts[0])
			_, err := newProvider(t, o).List(t.Context())
			require.ErrorContains(t, err, tc.says)
			require.ErrorAs(t, err, new(*noAnswerError))
		})
	}
}
