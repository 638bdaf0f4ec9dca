// Package app is the composition root: it reads the configuration, opens the
// bus, the audit store and the world, and starts the roles. It is the only
// package that may import everything; nothing but cmd imports it.
package app

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/utils/clock"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/config"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/provider/docker"
)

// The roles of a process. Each may run in any number of processes.
const (
	RoleGateway      = "gateway" // HTTP interface, config.applied, the timer relay
	RoleCollector    = "collector"
	RoleDecision     = "decision"
	RoleProvisioning = "provisioning"
	RoleDraining     = "draining"
	RoleAuditing     = "auditing"
	RoleAnnouncing   = "announcing" // Kubernetes Events
	RoleShadow       = "shadow"     // judges a candidate policy, and can't act
)

// Roles lists every role, in the order in which they start.
func Roles() []string {
	return []string{RoleAuditing, RoleAnnouncing, RoleDecision, RoleShadow, RoleProvisioning, RoleDraining, RoleCollector, RoleGateway}
}

// acting are the roles that change the world. A dry run has none of them.
var acting = []string{RoleProvisioning, RoleDraining, RoleAnnouncing}

// Options of an App. Config is required.
type Options struct {
	Config  *config.Config
	Version string   // of the program
	Roles   []string // default every role
	// DryRun decides and records, but starts no role that acts, loads no
	// credential to act and makes no provider.
	DryRun bool

	World    World                // default the real one
	Times    bus.Times            // of the bus's protocol; zero values are its defaults
	Clock    clock.WithTicker     // default the wall clock
	Logger   *slog.Logger         // default slog.Default()
	Registry *prometheus.Registry // default a new one
}

func (o Options) withDefaults() (Options, error) {
	var errs []error
	if o.Config == nil {
		errs = append(errs, errors.New("config is required"))
	}
	if len(o.Roles) == 0 {
		o.Roles = Roles()
		if o.DryRun {
			o.Roles = slices.DeleteFunc(o.Roles, func(r string) bool { return slices.Contains(acting, r) })
		}
	}
	for _, r := range o.Roles {
		if !slices.Contains(Roles(), r) {
			errs = append(errs, fmt.Errorf("roles: %q is unknown, expected some of %s", r, strings.Join(Roles(), ",")))
		}
		if o.DryRun && slices.Contains(acting, r) {
			errs = append(errs, fmt.Errorf("roles: %q acts, a dry run can't have it", r))
		}
	}
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Registry == nil {
		o.Registry = prometheus.NewRegistry()
	}
	if o.World == nil {
		o.World = realWorld{log: o.Logger, reg: o.Registry, engines: docker.NewEngines()}
	}
	return o, errors.Join(errs...)
}

func (o Options) has(role string) bool { return slices.Contains(o.Roles, role) }
