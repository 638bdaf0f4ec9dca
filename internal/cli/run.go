package cli

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/auth"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/config"
)

func (a *app) runCommand() *cobra.Command {
	o := RunOptions{Version: a.Version, Stdout: a.Stdout, Stderr: a.Stderr}
	c := &cobra.Command{
		Use:   "run --config FILE",
		Short: "Start the autoscaler",
		Long: `Start the autoscaler: every role in one process with an embedded bus, or some
roles against an external one (--roles, bus.url).

With --dry-run it decides and records, but neither provisioning nor draining is
started, and no credential to act is loaded.`,
		Example: "  k3s-autoscaler run --config config.yaml --dry-run\n  k3s-autoscaler run --config config.yaml --roles gateway,collector,decision",
		Args:    cobra.NoArgs,
		RunE: do(func(cmd *cobra.Command, _ []string) error {
			for _, r := range o.Roles {
				if !slices.Contains(Roles, r) {
					return usagef("--roles: there is no role %q; there are %s", r, strings.Join(Roles, ", "))
				}
			}
			if len(o.Roles) == 0 {
				o.Roles = slices.Clone(Roles)
			}
			acting := !o.DryRun && (slices.Contains(o.Roles, "provisioning") || slices.Contains(o.Roles, "draining"))
			cfg, err := a.loadConfig(o.ConfigPath, acting)
			if err != nil {
				return err
			}
			o.Config = cfg
			return a.Run(cmd.Context(), o)
		}),
	}
	f := c.Flags()
	f.StringVar(&o.ConfigPath, "config", "", "configuration file (required)")
	f.StringSliceVar(&o.Roles, "roles", nil, "roles to start (default all): "+strings.Join(Roles, ","))
	f.BoolVar(&o.DryRun, "dry-run", false, "decide and record, do not act")
	_ = c.MarkFlagRequired("config") // the flag exists
	_ = c.MarkFlagFilename("config", "yaml", "yml")
	return c
}

func (a *app) demoCommand() *cobra.Command {
	o := DemoOptions{Version: a.Version, Stdout: a.Stdout, Stderr: a.Stderr}
	c := &cobra.Command{
		Use:   "demo",
		Short: "Show the whole thing in a minute, on a simulated cluster",
		Long: `Show the whole thing in about a minute: alerts fire, pods pend, nodes join, load
falls, nodes drain and leave. The webhook, the bus, the handlers and the audit
store are the real ones; only the cluster and its machines are simulated.`,
		Args: cobra.NoArgs,
		RunE: do(func(cmd *cobra.Command, _ []string) error {
			if o.Speed <= 0 {
				return usagef("--speed: is %g, expected more than 0", o.Speed)
			}
			return a.Demo(cmd.Context(), o)
		}),
	}
	f := c.Flags()
	f.BoolVar(&o.Serve, "serve", false, "keep the API up at the end, to look around with the other commands")
	f.StringVar(&o.Listen, "listen", "127.0.0.1:0", "address of the API")
	f.Float64Var(&o.Speed, "speed", 1, "how fast the simulated world runs")
	f.BoolVarP(&o.Verbose, "verbose", "v", false, "show the program's own log too")
	return c
}

// loadConfig prints every problem of a configuration; the error is silent then.
func (a *app) loadConfig(path string, acting bool) (*config.Config, error) {
	cfg, err := config.Load(path)
	if err == nil && acting {
		err = cfg.CheckRun()
	}
	return a.loaded(path, cfg, err)
}

// loaded prints every problem and warning of a configuration that was read.
func (a *app) loaded(path string, cfg *config.Config, err error) (*config.Config, error) {
	if err != nil {
		return nil, a.badConfig(path, err)
	}
	for _, w := range cfg.Warnings() {
		fmt.Fprintf(a.Stderr, "warning: %s\n", w)
	}
	return cfg, nil
}

// badConfig prints every problem of a configuration and returns the error of it.
func (a *app) badConfig(path string, err error) error {
	var errs *config.Errors
	if !errors.As(err, &errs) {
		return &failure{err: err, code: ExitUsage}
	}
	for _, p := range errs.Problems {
		fmt.Fprintln(a.Stderr, p)
	}
	fmt.Fprintf(a.Stderr, "%s in %s\n", plural(len(errs.Problems), "problem"), path)
	return &failure{err: errSilent, code: ExitUsage}
}

func plural(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

func (a *app) configCommand() *cobra.Command {
	var dryRun, running bool
	check := &cobra.Command{
		Use: "check FILE", Short: "Check a configuration and list everything that is wrong",
		Long: `Check a configuration and list everything that is wrong.

With --running it is compared with the nodes of the running autoscaler (--server):
pools that have nodes and are not in the file are named, and what becomes of them.`,
		Args: cobra.ExactArgs(1),
		RunE: do(func(cmd *cobra.Command, args []string) error {
			cfg, err := a.loadConfig(args[0], !dryRun)
			if err != nil {
				return err
			}
			if running {
				if err := a.leftPools(cmd.Context(), cfg); err != nil {
					return err
				}
			}
			pools := 0
			for _, c := range cfg.Clusters {
				pools += len(c.Pools)
			}
			_, err = fmt.Fprintf(a.Stdout, "%s is valid: %s, %s, %s\n", args[0],
				plural(len(cfg.Clusters), "cluster"), plural(pools, "pool"), plural(len(cfg.Decision.AlertRules), "alert rule"))
			return err
		}),
	}
	check.Flags().BoolVar(&dryRun, "dry-run", false, "do not ask for what only acting needs")
	check.Flags().BoolVar(&running, "running", false, "compare it with the nodes of the running autoscaler")
	show := &cobra.Command{
		Use: "show FILE", Short: "Print a configuration with every default filled in; no secret is resolved",
		Args: cobra.ExactArgs(1),
		RunE: do(func(_ *cobra.Command, args []string) error {
			if _, err := a.loadConfig(args[0], false); err != nil {
				return err
			}
			out, err := config.Show(args[0])
			if err == nil {
				_, err = a.Stdout.Write(out)
			}
			return err
		}),
	}
	schema := &cobra.Command{
		Use: "schema", Short: "Print the JSON Schema of the configuration, for editors", Args: cobra.NoArgs,
		RunE: do(func(*cobra.Command, []string) error {
			out, err := config.Schema()
			if err == nil {
				_, err = a.Stdout.Write(out)
			}
			return err
		}),
	}
	return parent("config", "Check and show configurations", check, show, schema)
}

func (a *app) keyCommand() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use: "new --file FILE", Short: "Make a bearer token for the API and store it in a file",
		Long:    "Make a bearer token for the API (256 random bits) and store it in a new file that only its owner can read. Name the file in api.token_files, and give it to callers. The token itself is never printed.",
		Example: "  k3s-autoscaler key new --file api.token",
		Args:    cobra.NoArgs,
		RunE: do(func(*cobra.Command, []string) error {
			k := auth.NewKey()
			if err := k.WriteFile(file); err != nil {
				return err
			}
			_, err := fmt.Fprintf(a.Stdout, "token %s written to %s\nadd it to api.token_files; callers send it as 'Authorization: Bearer …'\n", k.ID, file)
			return err
		}),
	}
	c.Flags().StringVar(&file, "file", "", "file to write (required)")
	_ = c.MarkFlagRequired("file") // the flag exists
	return parent("key", "Make tokens for the API", c)
}
