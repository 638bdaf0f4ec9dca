// Package providertest is the conformance suite of provider.NodeProvider: every
// implementation passes it, and a new one starts by calling Exercise.
package providertest

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/provider"
)

// Subject is one implementation in its world. Its providers share that world:
// what one of them has made, the others find.
type Subject struct {
	// Provider makes a provider of a cluster, as a process would that has just
	// started. Machines of the cluster are the suite's alone.
	Provider func(t *testing.T, cluster string) provider.NodeProvider
	// Clusters are two names that nobody else uses in this world.
	Clusters [2]string
	// Size is a machine that fits; several of them run at a time.
	CPUMilli, MemoryBytes int64
	ServerVersion         string

	// Allocatable waits until the node of a started machine is Ready, and returns
	// what it reports, in thousandths of a core, bytes and pods.
	Allocatable func(ctx context.Context, t *testing.T, node string) (cpuMilli, memoryBytes, pods int64)

	// Lacks are the capabilities that the implementation can't have, because what
	// it stands on can't carry them, each with the reason. What the suite asks of
	// all others it does not ask then, and says so.
	Lacks map[Capability]string

	// Exits makes a provider of a cluster whose machines exit at once with code 1
	// and the words Complaint in their log.
	Exits     func(t *testing.T, cluster string) provider.NodeProvider
	Complaint string

	// Foreign makes a machine of that name that is not ours, and returns a
	// function that says whether it is there, untouched. nil: the world has no
	// others.
	Foreign func(t *testing.T, name string) (untouched func() bool)
	// Volumes says how many volumes there are that belong to a machine. nil: it
	// has none.
	Volumes func(t *testing.T, name string) int
	// Interrupt undoes what Create does after its first effect, as if it had been
	// killed there. nil: it has one effect only.
	Interrupt func(t *testing.T, cluster string, s provider.Spec)
	// Secrets may not show up in logs, nor in what Inspect says of a machine.
	Secrets []string
	// Inspect is all that the world tells about a machine to whoever may look.
	// nil: there is nothing to look at.
	Inspect func(t *testing.T, name string) string
	// Leaks makes a provider whose machines write one of the Secrets, and raw
	// returns what a machine has really written. nil: it knows none.
	Leaks func(t *testing.T, cluster string) (p provider.NodeProvider, raw func(name string) string)
}

// Capability is something that not every provider can have.
type Capability string

// The capabilities that a Subject may lack.
const (
	// SizesMachines: a machine has the size, the taints and the number of pods that
	// are asked for. Without it, it is at least of that size.
	SizesMachines Capability = "machines have the size asked for"
	// KeepsLogs: what a machine writes can be read. Without it, the log tells only
	// why it failed.
	KeepsLogs Capability = "machines keep a log"
	// SharesNames: clusters share the names of machines. Without it, each has its
	// own, and two of them may use the same.
	SharesNames Capability = "clusters share names"
)

// lacks reports whether the subject can't have it, and says so.
func (s *suite) lacks(t *testing.T, c Capability) bool {
	t.Helper()
	why, lacks := s.Lacks[c]
	if lacks {
		require.NotEmpty(t, why, "a lack has a reason")
		t.Logf("not asked for that %s: %s", c, why)
	}
	return lacks
}

// patience bounds what a machine may take to do something by itself.
const patience = 60 * time.Second

type suite struct {
	Subject
	prefix string
}

// Exercise runs the suite. New is called for each test; its Subject may be the
// same.
func Exercise(t *testing.T, subject func(t *testing.T) Subject) {
	t.Helper()
	// One look at what this world has at all.
	has := subject(t)
	for name, test := range map[string]func(*suite, *testing.T){
		"created machine is found and not running":      (*suite).created,
		"creating twice yields one machine":             (*suite).createdTwice,
		"parallel creations yield one machine":          (*suite).createdInParallel,
		"machine of another claim or epoch is taken":    (*suite).nameTaken,
		"machine of another cluster is not seen":        (*suite).otherCluster,
		"started machine joins with the size asked for": (*suite).allocatable,
		"exited machine is not started again":           (*suite).exitedOnce,
		"stopped machine is not started again":          (*suite).stoppedOnce,
		"running machine is deleted with its volumes":   (*suite).deleted,
		"absent machine is not found":                   (*suite).absent,
		"logs are bounded and hold no secret":           (*suite).logs,
		"impossible specification is refused":           (*suite).refused,
		"list is ordered and holds every state":         (*suite).list,
	} {
		run(t, name, subject, test)
	}
	if has.Foreign != nil {
		run(t, "foreign machine is not touched", subject, (*suite).foreign)
	}
	if has.Interrupt != nil {
		run(t, "interrupted creation is completed", subject, (*suite).interrupted)
	}
	if has.Leaks != nil {
		run(t, "secrets in a log are redacted", subject, (*suite).leaks)
	}
}

func run(t *testing.T, name string, subject func(t *testing.T) Subject, test func(*suite, *testing.T)) {
	t.Helper()
	t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
		s := &suite{Subject: subject(t), prefix: "pt-" + suffix(name)}
		t.Cleanup(func() { s.sweep(t) })
		test(s, t)
	})
}

// suffix is short and different for each test.
func suffix(name string) string {
	var sum uint32 = 2166136261 // FNV-1a
	for _, b := range []byte(name) {
		sum = (sum ^ uint32(b)) * 16777619
	}
	return fmt.Sprintf("%08x", sum)
}

// sweep removes what a test has left, which is also a test of Delete.
func (s *suite) sweep(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for _, cluster := range s.Clusters {
		p := s.Provider(t, cluster)
		machines, err := p.List(ctx)
		require.NoError(t, err)
		for _, m := range machines {
			require.NoError(t, p.Delete(ctx, m.Name))
		}
	}
}

func (s *suite) spec(name string) provider.Spec {
	return provider.Spec{
		Name: s.prefix + "-" + name, Cluster: s.Clusters[0], Pool: "pt", ClaimID: "claim-" + name, Epoch: "epoch-1",
		CPUMilli: s.CPUMilli, MemoryBytes: s.MemoryBytes, ServerVersion: s.ServerVersion,
		Labels: map[string]string{"providertest": s.prefix},
	}
}

func (s *suite) ours(t *testing.T) provider.NodeProvider { return s.Provider(t, s.Clusters[0]) }
