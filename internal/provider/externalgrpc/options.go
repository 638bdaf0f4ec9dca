package externalgrpc

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"k8s.io/utils/clock"
)

// DefaultTimeout is how long one call may take. It is longer than the five
// seconds of the Cluster Autoscaler, since providers may answer a change of size
// only when it is done, and a call that was cut short leaves doubt.
const DefaultTimeout = 30 * time.Second

// ErrConflict is what a Store returns when somebody else wrote in between.
var ErrConflict = errors.New("the ledger was written by somebody else")

// Store keeps the ledgers of node groups: what was asked for has to be known
// after a crash, and by every process.
type Store interface {
	// Load returns what is kept under key, and its revision; nil and 0 when there
	// is nothing.
	Load(ctx context.Context, key string) (data []byte, revision uint64, err error)
	// Save replaces what is kept under key if it still has that revision, 0 for
	// nothing; ErrConflict otherwise.
	Save(ctx context.Context, key string, data []byte, revision uint64) error
}

// TLS names the files of a mutually authenticated connection. All empty: none.
type TLS struct {
	CAFile   string // authority of the provider's certificate; the system's when empty
	CertFile string // our certificate
	KeyFile  string // its private key
}

// Options of a Provider. Cluster, Pool, Address, NodeGroup and Store are required.
type Options struct {
	Cluster string
	Pool    string
	// Address of the provider, host:port.
	Address string
	TLS     TLS
	// NodeGroup is the id of the group as the provider has it.
	NodeGroup string
	// Timeout of one call. Default DefaultTimeout.
	Timeout time.Duration
	Store   Store
	Clock   clock.PassiveClock // default the wall clock
	Logger  *slog.Logger       // default slog.Default()
	// DialOptions are added to those of the connection, for tests.
	DialOptions []grpc.DialOption
}

func (o Options) withDefaults() (Options, error) {
	var errs []error
	for _, f := range []struct{ name, value string }{
		{"cluster", o.Cluster}, {"pool", o.Pool}, {"address", o.Address}, {"node group", o.NodeGroup},
	} {
		if f.value == "" {
			errs = append(errs, fmt.Errorf("%s is required", f.name))
		}
	}
	if _, _, err := net.SplitHostPort(o.Address); o.Address != "" && err != nil {
		errs = append(errs, fmt.Errorf("address is %q, expected host:port", o.Address))
	}
	if o.Store == nil {
		errs = append(errs, errors.New("store is required"))
	}
	if (o.TLS.CertFile == "") != (o.TLS.KeyFile == "") {
		errs = append(errs, errors.New("a certificate and its key come together"))
	}
	if o.Timeout <= 0 {
		o.Timeout = DefaultTimeout
	}
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return o, errors.Join(errs...)
}

// dial makes a connection, which is opened by its first call.
func dial(o Options) (*grpc.ClientConn, error) {
	creds := insecure.NewCredentials()
	if o.TLS != (TLS{}) {
		config, err := o.TLS.config()
		if err != nil {
			return nil, err
		}
		creds = credentials.NewTLS(config)
	}
	opts := append([]grpc.DialOption{grpc.WithTransportCredentials(creds)}, o.DialOptions...)
	return grpc.NewClient(o.Address, opts...)
}

func (t TLS) config() (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if t.CAFile != "" {
		pem, err := os.ReadFile(t.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read the authority of the provider's certificate: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no certificate in PEM", t.CAFile)
		}
	}
	if t.CertFile != "" {
		cert, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("load client certificate %s: %w", t.CertFile, err)
		}
		c.Certificates = []tls.Certificate{cert}
	}
	return c, nil
}
