//go:build unix

package chaos

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
)

// ChildOptions are what the package of a test gives to the processes of a run.
type ChildOptions struct {
	// Mutants break a rule of the bus in a worker, by name.
	Mutants map[string]func()
	// Audit makes one more reader of all events for a worker; its files belong into
	// dir, which all workers of a run share. Default: none.
	Audit func(dir string, b *bus.Bus) (bus.BatchHandler, error)
}

// Child runs this process as a server or a worker and returns true, if it was
// started as one.
func Child(o ChildOptions) bool {
	raw := os.Getenv(childEnv)
	if raw == "" {
		return false
	}
	if err := runChild(raw, o); err != nil {
		fmt.Fprintln(os.Stderr, "chaos child:", err)
		os.Exit(1)
	}
	return true
}

const childEnv = "BUS_CHAOS_CHILD"

// childSpec says what a child is; one of both.
type childSpec struct {
	Server *serverSpec `json:"server,omitempty"`
	Worker *workerSpec `json:"worker,omitempty"`
}

func runChild(raw string, o ChildOptions) error {
	var spec childSpec
	if err := json.Unmarshal([]byte(raw), &spec); err != nil {
		return err
	}
	if spec.Server != nil {
		return runServer(*spec.Server)
	}
	if m := spec.Worker.Mutant; m != "" {
		breakRule, ok := o.Mutants[m]
		if !ok {
			return fmt.Errorf("mutant %q is unknown", m)
		}
		breakRule()
	}
	return runWorker(*spec.Worker, o)
}
