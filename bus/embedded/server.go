// Package embedded runs a NATS server with JetStream inside this process: what
// a single machine needs of NATS, without an installation.
//
// It is durable by default: every write is on disk before it is acknowledged.
// It listens on no network address unless told to; the process itself connects
// in memory.
package embedded

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// Options of a server.
type Options struct {
	// Dir holds the data. Required; made if absent. One server at a time.
	Dir string
	// Unsynced acknowledges before the data is on disk: about 30 times faster, and
	// a loss of power loses up to SyncInterval of acknowledged events.
	Unsynced bool
	// SyncInterval is how often an Unsynced server writes to disk. Default 2m.
	SyncInterval time.Duration
	// Listen is the address for other processes, "host:port"; a missing host is
	// 127.0.0.1, port 0 is any free one. Default: no listener.
	Listen string
	// Token, or User and Password, are asked of every connection that comes over
	// the network. An address other than loopback requires one of them.
	Token, User, Password string
	// CertFile and KeyFile hold the certificate of the listener. Default: no TLS.
	CertFile, KeyFile string
	// MaxStore bounds the data on disk in bytes. Default: 75 % of the free space.
	MaxStore int64
	// Name of the server in logs. Default "k3s-autoscaler".
	Name string
	// Logger gets what the server says. Default: discards.
	Logger *slog.Logger
	// StartTimeout bounds the recovery of stored data. Default 60s.
	StartTimeout time.Duration
}

// tlsTimeout bounds the handshake of a connection.
const tlsTimeout = 5 * time.Second

// Server is a running server.
type Server struct {
	opts Options
	ns   *server.Server
	lock *dirLock
	once sync.Once
}

// ErrInUse means that another process, or another server of this one, uses the directory.
var ErrInUse = errors.New("the data directory is in use")

// Start starts a server and waits until JetStream is ready.
func Start(o Options) (*Server, error) {
	if o.Dir == "" {
		return nil, errors.New("embedded server: dir: is empty, expected the directory for its data")
	}
	o.Name = cmp.Or(o.Name, "k3s-autoscaler")
	o.StartTimeout = cmp.Or(o.StartTimeout, 60*time.Second)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	so, err := o.serverOptions()
	if err != nil {
		return nil, fmt.Errorf("embedded server: %w", err)
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("embedded server: make data directory: %w", err)
	}
	lock, err := lockDir(filepath.Join(o.Dir, "lock"))
	if err != nil {
		return nil, fmt.Errorf("embedded server: data directory %s: %w", o.Dir, err)
	}
	s := &Server{opts: o, lock: lock}
	if err := s.start(so); err != nil {
		return nil, fmt.Errorf("embedded server: %w", errors.Join(err, lock.release()))
	}
	return s, nil
}

func (s *Server) start(so *server.Options) error {
	ns, err := server.NewServer(so)
	if err != nil {
		return err
	}
	l := &logger{log: s.opts.Logger}
	ns.SetLoggerV2(l, false, false, false)
	ns.Start()
	if !ns.ReadyForConnections(s.opts.StartTimeout) || !ns.JetStreamEnabled() {
		ns.Shutdown()
		ns.WaitForShutdown()
		if msg := l.lastError(); msg != "" {
			return errors.New(msg)
		}
		return fmt.Errorf("not ready after %s", s.opts.StartTimeout)
	}
	s.ns = ns
	return nil
}

func (o Options) serverOptions() (*server.Options, error) {
	so := &server.Options{
		ServerName:   o.Name,
		JetStream:    true,
		StoreDir:     o.Dir,
		SyncAlways:   !o.Unsynced,
		SyncInterval: cmp.Or(o.SyncInterval, 2*time.Minute),
		DontListen:   o.Listen == "",
		NoSigs:       true,
		NoLog:        false,
	}
	if o.MaxStore > 0 {
		so.JetStreamMaxStore = o.MaxStore
	}
	if o.Listen == "" {
		return so, nil
	}
	host, port, err := net.SplitHostPort(o.Listen)
	if err != nil {
		return nil, fmt.Errorf("listen: is %q, expected host:port: %w", o.Listen, err)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("listen: port is %q, expected 0 to 65535", port)
	}
	so.Host, so.Port = cmp.Or(host, "127.0.0.1"), int(n)
	if n == 0 {
		so.Port = server.RANDOM_PORT
	}
	so.Authorization, so.Username, so.Password = o.Token, o.User, o.Password
	if o.CertFile != "" {
		cert, err := tls.LoadX509KeyPair(o.CertFile, o.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("certificate %s: %w", o.CertFile, err)
		}
		so.TLS, so.TLSTimeout = true, tlsTimeout.Seconds()
		so.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}}
	}
	ip := net.ParseIP(so.Host)
	loopback := so.Host == "localhost" || ip != nil && ip.IsLoopback()
	if !loopback && o.Token == "" && (o.User == "" || o.Password == "") {
		return nil, fmt.Errorf("listen: %s can be reached by others, expected a token or a user and password", o.Listen)
	}
	return so, nil
}

// Connect connects within the process.
func (s *Server) Connect(opts ...nats.Option) (*nats.Conn, error) {
	opts = append([]nats.Option{nats.InProcessServer(s.ns)}, opts...)
	switch {
	case s.opts.Listen == "":
	case s.opts.Token != "":
		opts = append(opts, nats.Token(s.opts.Token))
	case s.opts.User != "":
		opts = append(opts, nats.UserInfo(s.opts.User, s.opts.Password))
	}
	return nats.Connect("", opts...)
}

// URL is the address for other processes, empty without a listener.
func (s *Server) URL() string {
	if s.opts.Listen == "" {
		return ""
	}
	return s.ns.ClientURL()
}

// Dir is the data directory.
func (s *Server) Dir() string { return s.opts.Dir }

// Shutdown ends the server and waits until its data is written. It may be
// called more than once.
func (s *Server) Shutdown() {
	s.once.Do(func() {
		s.ns.Shutdown()
		s.ns.WaitForShutdown()
		if err := s.lock.release(); err != nil {
			s.opts.Logger.Warn("data directory lock not released", "dir", s.opts.Dir, "error", err)
		}
	})
}
