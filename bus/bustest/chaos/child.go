//go:build unix

package chaos

import (
	"encoding/json"
	"fmt"
	"os"
)

// Child runs this process as a server or a worker and returns true, if it was
// started as one. mutants break a rule of the bus in a worker, by name.
func Child(mutants map[string]func()) bool {
	raw := os.Getenv(childEnv)
	if raw == "" {
		return false
	}
	if err := runChild(raw, mutants); err != nil {
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

func runChild(raw string, mutants map[string]func()) error {
	var spec childSpec
	if err := json.Unmarshal([]byte(raw), &spec); err != nil {
		return err
	}
	if spec.Server != nil {
		return runServer(*spec.Server)
	}
	if m := spec.Worker.Mutant; m != "" {
		breakRule, ok := mutants[m]
		if !ok {
			return fmt.Errorf("mutant %q is unknown", m)
		}
		breakRule()
	}
	return runWorker(*spec.Worker)
}
