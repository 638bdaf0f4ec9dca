// Package cli is the command line: it starts the program and talks to one that
// runs. Exit code 0 is success, 1 failure, 2 wrong usage or configuration.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/utils/clock"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/bundle"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/config"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/doctor"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/replay"
)

// Exit codes.
const (
	ExitOK      = 0
	ExitFailure = 1
	ExitUsage   = 2
)

// Roles that 'run' can start.
var Roles = []string{"gateway", "collector", "decision", "provisioning", "draining", "auditing", "announcing", "shadow"}

// RunOptions are what 'run' was asked for. The configuration is checked.
type RunOptions struct {
	ConfigPath string
	Config     *config.Config
	Roles      []string // never empty
	DryRun     bool
	Version    string
	Stdout     io.Writer
	Stderr     io.Writer
}

// DemoOptions are what 'demo' was asked for.
type DemoOptions struct {
	Serve   bool    // keep the API up at the end
	Listen  string  // address of the API
	Speed   float64 // factor on the simulated delays; 1 is about a minute
	Verbose bool    // show the log of the program too
	Version string
	Stdout  io.Writer
	Stderr  io.Writer
}

// ProvisionOptions are what 'bus provision' was asked for. The configuration is
// checked.
type ProvisionOptions struct {
	ConfigPath string
	Config     *config.Config
	Version    string
	Stdout     io.Writer
	Stderr     io.Writer
}

// PermissionsOptions are what 'bus permissions' was asked for.
type PermissionsOptions struct {
	Users  []string // the roles of each, with commas; none: a user for each role
	Format string   // nats or json
	Stdout io.Writer
}

// Options of the command line. Run, Demo, Replay, Decide, Export, Doctor and those of the bus are required;
// everything else defaults to the process's own.
type Options struct {
	Version string
	Run     func(ctx context.Context, o RunOptions) error
	Demo    func(ctx context.Context, o DemoOptions) error
	Replay  func(ctx context.Context, o ReplayOptions) (replay.Report, error)
	Decide  func(ctx context.Context, o DecideOptions) (replay.DecisionReport, error)
	Export  func(ctx context.Context, o ExportOptions) (bundle.Manifest, error)
	Doctor  func(ctx context.Context, o DoctorOptions) doctor.Report

	BusProvision   func(ctx context.Context, o ProvisionOptions) error
	BusRebase      func(ctx context.Context, o RebaseOptions) (bus.Rebased, error)
	BusPermissions func(o PermissionsOptions) error

	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
	Getenv func(string) string
	// ConfigDir is where the client's own configuration is. Default: the user's,
	// e.g. ~/.config/k3s-autoscaler.
	ConfigDir string
	HTTP      *http.Client
	Clock     clock.WithTicker
}

func (o *Options) complete() {
	if o.Stdin == nil {
		o.Stdin = os.Stdin
	}
	if o.Stdout == nil {
		o.Stdout = os.Stdout
	}
	if o.Stderr == nil {
		o.Stderr = os.Stderr
	}
	if o.Getenv == nil {
		o.Getenv = os.Getenv
	}
	if o.ConfigDir == "" {
		if dir, err := os.UserConfigDir(); err == nil {
			o.ConfigDir = filepath.Join(dir, "k3s-autoscaler")
		}
	}
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	if o.Version == "" {
		o.Version = "devel"
	}
}

// failure is an error of a command that was used as it should be.
type failure struct {
	err    error
	code   int
	status int // of the answer that says so; 0: none does
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// usagef is an error of the one who typed.
func usagef(format string, args ...any) error {
	return &failure{err: fmt.Errorf(format, args...), code: ExitUsage}
}

// errSilent says that everything was said already.
var errSilent = errors.New("")

// Execute runs one command line and returns the exit code.
func Execute(ctx context.Context, o Options, args []string) int {
	o.complete()
	root := newRoot(&o)
	root.SetArgs(append([]string{}, args...)) // nil would be the process's own arguments
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return ExitOK
	}
	code, hint := ExitUsage, true
	var f *failure
	if errors.As(err, &f) {
		code, hint = f.code, false
	}
	if text := err.Error(); text != "" {
		fmt.Fprintln(o.Stderr, "Error: "+strings.TrimSpace(text))
	}
	if hint {
		fmt.Fprintf(o.Stderr, "See '%s --help'.\n", cmd.CommandPath())
	}
	return code
}

// app is what the commands share.
type app struct {
	*Options
	server    string
	tokenFile string
	caFile    string
	output    string
}

// do makes errors of a command failures; what cobra itself finds stays usage.
func do(fn func(cmd *cobra.Command, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		err := fn(cmd, args)
		var f *failure
		if err == nil || errors.As(err, &f) {
			return err
		}
		return &failure{err: err, code: ExitFailure}
	}
}

func newRoot(o *Options) *cobra.Command {
	a := &app{Options: o}
	root := &cobra.Command{
		Use:   "k3s-autoscaler",
		Short: "Adds and removes worker nodes of k3s clusters, and says why",
		Long: `k3s-autoscaler adds and removes worker nodes of k3s clusters. Alerts, pending
pods and people trigger it; everything that happens is an event that can be
listed, followed and explained.

'demo' shows it without a cluster. 'run' starts it. The other commands talk to
one that runs, found by --server and --token-file, the environment
(K3S_AUTOSCALER_SERVER, K3S_AUTOSCALER_TOKEN_FILE) or
~/.config/k3s-autoscaler/config.yaml (keys: server, token_file, ca_file).`,
		SilenceErrors: true, SilenceUsage: true,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetIn(o.Stdin)
	root.SetOut(o.Stdout)
	root.SetErr(o.Stderr)
	p := root.PersistentFlags()
	p.StringVar(&a.server, "server", "", "address of the API (default "+defaultServer+")")
	p.StringVar(&a.tokenFile, "token-file", "", "file with the bearer token")
	p.StringVar(&a.caFile, "ca-file", "", "certificate authority of an https server")
	root.AddGroup(
		&cobra.Group{ID: "start", Title: "Start:"},
		&cobra.Group{ID: "look", Title: "Look:"},
		&cobra.Group{ID: "act", Title: "Act:"},
		&cobra.Group{ID: "set", Title: "Set up:"},
	)
	root.SetHelpCommandGroupID("set")
	root.SetCompletionCommandGroupID("set")
	group := func(id string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = id
			root.AddCommand(c)
		}
	}
	group("start", a.demoCommand(), a.runCommand())
	group("look", a.statusCommand(), a.nodesCommand(), a.explainCommand(), a.eventsCommand(), a.auditCommand(), a.dlqCommand(), a.replayCommand(),
		a.backtestCommand(), a.exportCommand(), a.importCommand(), a.doctorCommand())
	group("act", a.scaleCommand(), a.nodeCommand("cordon"), a.nodeCommand("uncordon"), a.nodeCommand("drain"), a.nodeCommand("remove"),
		a.pauseCommand(), a.resumeCommand(), a.poolCommand(), a.signalCommand(), a.shadowCommand(), a.reconcileCommand())
	group("set", a.configCommand(), a.keyCommand(), a.busCommand(), a.versionCommand())
	return root
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		RunE: do(func(*cobra.Command, []string) error {
			_, err := fmt.Fprintf(a.Stdout, "k3s-autoscaler %s (%s, %s/%s)\n", a.Version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		}),
	}
}

// parent is a command that only has subcommands: without one it is a mistake.
func parent(use, short string, subs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Args: func(_ *cobra.Command, args []string) error {
		if len(args) == 0 {
			return errors.New("name a subcommand")
		}
		return fmt.Errorf("unknown subcommand %q", args[0])
	}, RunE: func(*cobra.Command, []string) error { return nil }}
	c.AddCommand(subs...)
	return c
}
