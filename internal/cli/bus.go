package cli

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// busFormats are what 'bus permissions' can write.
var busFormats = []string{"nats", "json"}

func (a *app) busCommand() *cobra.Command {
	return parent("bus", "Set up an external NATS, and recover from lost events", a.busProvisionCommand(), a.busPermissionsCommand(), a.busRebaseCommand())
}

func (a *app) busProvisionCommand() *cobra.Command {
	o := ProvisionOptions{Version: a.Version, Stdout: a.Stdout, Stderr: a.Stderr}
	c := &cobra.Command{
		Use:   "provision --config FILE",
		Short: "Make the streams, consumers and buckets of every role",
		Long: `Make the streams, consumers and buckets of every role on an external NATS, or
change them to what this version and the configuration need. It never deletes,
and may be run again at any time, also while the autoscaler runs.

The configuration holds bus.url and the credential of an administrator, who may
use the whole JetStream API. Processes that run with 'bus.provisioned: true' then
need no more than 'bus permissions' prints.`,
		Example: "  k3s-autoscaler bus provision --config admin.yaml",
		Args:    cobra.NoArgs,
		RunE: do(func(cmd *cobra.Command, _ []string) error {
			cfg, err := a.loadConfig(o.ConfigPath, false)
			if err != nil {
				return err
			}
			if cfg.Bus.URL == "" {
				return usagef("%s: bus.url is missing; the embedded bus provisions itself", o.ConfigPath)
			}
			o.Config = cfg
			return a.BusProvision(cmd.Context(), o)
		}),
	}
	c.Flags().StringVar(&o.ConfigPath, "config", "", "configuration file (required)")
	_ = c.MarkFlagRequired("config") // the flag exists
	_ = c.MarkFlagFilename("config", "yaml", "yml")
	return c
}

func (a *app) busPermissionsCommand() *cobra.Command {
	o := PermissionsOptions{Stdout: a.Stdout}
	c := &cobra.Command{
		Use:   "permissions",
		Short: "Print what the NATS user of each role needs, and no more",
		Long: `Print the permissions of NATS users, one for each role or for each --role, in the
syntax of the NATS server's configuration or as JSON, in the form of user JWTs. A
process that runs several roles has one user: name them together, with commas.`,
		Example: "  k3s-autoscaler bus permissions > k3s-autoscaler-permissions.conf\n" +
			"  k3s-autoscaler bus permissions --role gateway,collector --role decision\n" +
			"  k3s-autoscaler bus permissions --role draining -o json",
		Args: cobra.NoArgs,
		RunE: do(func(*cobra.Command, []string) error {
			if !slices.Contains(busFormats, o.Format) {
				return usagef("-o: is %q, expected one of %s", o.Format, strings.Join(busFormats, ", "))
			}
			for _, u := range o.Users {
				for r := range strings.SplitSeq(u, ",") {
					if !slices.Contains(Roles, r) {
						return usagef("--role: there is no role %q; there are %s", r, strings.Join(Roles, ", "))
					}
				}
			}
			if err := a.BusPermissions(o); err != nil {
				return fmt.Errorf("print permissions: %w", err)
			}
			return nil
		}),
	}
	c.Flags().StringArrayVar(&o.Users, "role", nil, "role, or roles with commas, of one user; may be given again (default one user for each role)")
	c.Flags().StringVarP(&o.Format, "output", "o", busFormats[0], "format: "+strings.Join(busFormats, ", "))
	return c
}
