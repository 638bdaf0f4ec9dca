package app

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/nats-io/nats.go"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/embedded"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/config"
)

// openBus connects to the external bus, or starts the embedded one.
func (a *App) openBus(ctx context.Context) error {
	c := a.opts.Config.Bus
	o := busOptions(c, a.opts)
	if c.URL == "" {
		eo, err := embeddedOptions(c.Embedded)
		if err != nil {
			return err
		}
		eo.Logger = a.opts.Logger
		makePlaces()
		server, err := embedded.Start(eo)
		if err != nil {
			return fmt.Errorf("start the embedded bus: %w", err)
		}
		a.server, o.Server, o.Sole = server, server, c.Embedded.Listen == ""
	}
	if a.store != nil {
		o.Admit = func(st bus.LogState) error { return a.admitLog(ctx, st) }
	}
	b, err := a.awaitBus(ctx, o)
	if err != nil {
		return fmt.Errorf("open the bus: %w", err)
	}
	a.bus = b
	a.ready = append(a.ready, check{"bus", b.Ready})
	return nil
}

// admitLog compares the log with the high-water mark outside of it, before
// anything is made: a log that is gone, shorter than what was recorded of it, or
// another one has lost acknowledged events, and carrying on in silence would hide
// that.
func (a *App) admitLog(ctx context.Context, st bus.LogState) error {
	incarnation, high, err := a.store.High(ctx)
	if err != nil {
		return fmt.Errorf("read the high-water mark of the audit store: %w", err)
	}
	const advice = "restore the bus's data; or state by 'k3s-autoscaler bus rebase' that what is there is the truth"
	_, continues := st.Continues(incarnation)
	switch {
	case incarnation == "":
		return nil
	case !st.Exists:
		return fmt.Errorf("%w: the log is gone, while %d events of it were recorded in the audit store; %s", bus.ErrLost, high, advice)
	case !continues:
		return fmt.Errorf("%w: the log is another one (%s) than the audit store recorded (%s, up to sequence %d); %s", bus.ErrLost, st.Incarnation, incarnation, high, advice)
	case st.Incarnation == incarnation && st.Last < high:
		return fmt.Errorf("%w: the log ends at sequence %d, while sequence %d of it was recorded in the audit store; %s", bus.ErrLost, st.Last, high, advice)
	}
	return nil
}

// busOptions are the options of a connection to the bus that c describes. An
// embedded server is not among them.
func busOptions(c config.Bus, o Options) bus.Options {
	bo := bus.Options{
		Replicas: c.Replicas, MaxAge: c.MaxAge.Std(), MaxBytes: int64(c.MaxBytes), InFlight: c.InFlight,
		Times: o.Times, Logger: o.Logger, Clock: o.Clock, OnStep: crashHook(),
	}
	if o.Registry != nil { // a nil pointer would be a Registerer
		bo.Registerer = o.Registry
	}
	if c.URL != "" {
		bo.URL, bo.Connect, bo.Provisioned = strings.Join(c.Servers(), ","), connectOptions(c, o), c.Provisioned
		bo.Role = inboxRole(o.Roles)
	}
	return bo
}

// inboxRole is the role whose inbox the process uses: a credential for several
// roles may use that of each.
func inboxRole(roles []string) string {
	for _, r := range Roles() {
		if slices.Contains(roles, r) {
			return r
		}
	}
	return ""
}

// connectOptions are how a process logs in. Secrets are read again at each
// attempt, so that they can be replaced while it runs.
func connectOptions(c config.Bus, o Options) []nats.Option {
	opts := []nats.Option{
		// A credential that the server refuses now may be let in later, or replaced.
		nats.IgnoreAuthErrorAbort(),
	}
	secret := func(path string) string {
		s, err := config.ReadSecret(path)
		if err != nil {
			o.Logger.Error("a secret of the bus can't be read, the server will refuse this process", "file", path, "error", err)
		}
		return s
	}
	switch {
	case c.CredentialsFile != "":
		opts = append(opts, nats.UserCredentials(c.CredentialsFile))
	case c.NKeyFile != "":
		nkey, err := nats.NkeyOptionFromSeed(c.NKeyFile)
		if err != nil {
			nkey = func(*nats.Options) error {
				return fmt.Errorf("bus.nkey_file: file %s holds no seed of a user NKey: %w", c.NKeyFile, err)
			}
		}
		opts = append(opts, nkey)
	case c.TokenFile != "":
		opts = append(opts, nats.TokenHandler(func() string { return secret(c.TokenFile) }))
	case c.User != "":
		opts = append(opts, nats.UserInfoHandler(func() (user, password string) { return c.User, secret(c.PasswordFile) }))
	}
	if t := c.TLS; t != nil {
		opts = append(opts, nats.Secure())
		if t.CAFile != "" {
			opts = append(opts, nats.RootCAs(t.CAFile))
		}
		if t.CertFile != "" {
			opts = append(opts, nats.ClientCert(t.CertFile, t.KeyFile))
		}
	}
	return opts
}

func embeddedOptions(c config.Embedded) (embedded.Options, error) {
	interval := c.Sync.Interval()
	o := embedded.Options{Dir: c.Dir, Unsynced: interval > 0, SyncInterval: interval, Listen: c.Listen}
	if c.TokenFile != "" {
		token, err := config.ReadSecret(c.TokenFile)
		if err != nil {
			return o, fmt.Errorf("bus.embedded.token_file: file %s %w", c.TokenFile, err)
		}
		o.Token = token
	}
	if c.TLS != nil {
		o.CertFile, o.KeyFile = c.TLS.CertFile, c.TLS.KeyFile
	}
	return o, nil
}
