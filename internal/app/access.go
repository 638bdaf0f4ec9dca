package app

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/config"
)

// access is what a role does on the bus. Everything that it may do on NATS
// follows from this and from the catalogue of events.
func access(role string) bus.Access {
	switch role {
	case RoleGateway:
		return bus.Access{Name: role, Publishers: []string{"alerting", "api", "app"}, Record: true, DeadLetters: true, Timers: true,
			ReadStates: []string{events.HandlerDecision, events.HandlerProvisioning, events.HandlerDraining, events.HandlerShadow}}
	case RoleCollector:
		return bus.Access{Name: role, Publishers: []string{"collector"}, State: RoleCollector,
			ReadStates: []string{events.HandlerDecision, events.HandlerProvisioning, events.HandlerDraining, events.HandlerShadow}}
	case RoleDecision:
		return bus.Access{Name: role, Publishers: []string{role}, Handler: events.HandlerDecision}
	case RoleShadow:
		return bus.Access{Name: role, Publishers: []string{role}, Handler: events.HandlerShadow}
	case RoleProvisioning:
		return bus.Access{Name: role, Publishers: []string{role}, Handler: events.HandlerProvisioning}
	case RoleDraining:
		return bus.Access{Name: role, Publishers: []string{role}, Handler: events.HandlerDraining}
	case RoleAnnouncing:
		return bus.Access{Name: role, Handler: events.HandlerAnnouncing, Batch: true}
	default:
		return bus.Access{Name: role, Handler: events.HandlerAuditing, Batch: true, Record: true}
	}
}

func everyone() []bus.Access {
	var out []bus.Access
	for _, r := range Roles() {
		out = append(out, access(r))
	}
	return out
}

// Permissions returns the least that a NATS user needs under which a process
// runs the given roles.
func Permissions(roles ...string) (bus.Permissions, error) {
	var as []bus.Access
	for _, r := range roles {
		if !slices.Contains(Roles(), r) {
			return bus.Permissions{}, fmt.Errorf("role %q is unknown, expected some of %s", r, strings.Join(Roles(), ", "))
		}
		as = append(as, access(r))
	}
	return bus.PermissionsFor(everyone(), as...), nil
}

// Provision makes and updates everything that the roles need on an external bus.
func Provision(ctx context.Context, c config.Bus, o Options) ([]bus.Provisioned, error) {
	bo := busOptions(c, o)
	bo.Role = "" // whoever administers may use the default inbox
	return bus.Provision(ctx, bo, everyone())
}
