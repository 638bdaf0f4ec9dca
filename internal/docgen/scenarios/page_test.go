package scenarios

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestMain(m *testing.M) {
	time.Local = time.UTC // what is printed is local time
	os.Exit(m.Run())
}

func TestThePageIsCurrent(t *testing.T) {
	t.Parallel()
	want, err := os.ReadFile("../../../docs/explanations.md")
	require.NoError(t, err)
	got, err := Page(t.Context())
	require.NoError(t, err)
	require.Equal(t, string(want), got, "make generate")
}

// Each answer holds what makes it one: the value and the threshold, what would
// have to change, who asked, how long.
func TestAnAnswerHoldsValueThresholdAndWhatWouldHaveToChange(t *testing.T) {
	t.Parallel()
	for title, texts := range map[string][]string{
		"Why did it not scale up?":               {"4000m of cpu", "2000m", "raise the pool's cpu"},
		"Stuck at a limit, silently":             {"AtMax", "3 of 3", "raise max of pool burst above 3", "2 pods"},
		"Why was this node deleted?":             {"10.0%", "50.0%", "node.removed"},
		"Flapping: the node comes back at once":  {"Flapping", "3 times", "scale_down.unneeded"},
		"A drain stuck on a PodDisruptionBudget": {"shop/db", "shop/db-0", "add a replica or relax the budget"},
		"One drain blocks everything":            {"scale up by 1"},
		"Capacity by hand":                       {"ada", "Friday's sale", "scale up by 2"},
		"CI jobs killed":                         {"ci/build-17", "safe-to-evict", "wait for the pod to end"},
		"Opaque blockers":                        {"burst-a", "burst-b", "burst-c", "shop/debug", "shop/cache-0", "remove the annotation from the node"},
		"A missing metric scales to the minimum": {"StaleSnapshot", "objects of kind pod are unknown"},
		"Backoff, invisible or stuck":            {"backs off for 30s", "no route to host", "pool reset-backoff burst"},
		"No pause":                               {"ada", "new switch", "lifts by itself at 11:00:00 (in 1h59m), or when the pool is resumed", "k3s-autoscaler resume burst"},
	} {
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			for _, s := range scenarios {
				if s.title != title {
					continue
				}
				_, answer, err := s.run(t.Context())
				require.NoError(t, err)
				plain := strings.Join(strings.Fields(answer), " ")
				for _, text := range texts {
					require.Contains(t, plain, text)
				}
				return
			}
			require.Fail(t, "no such scenario")
		})
	}
	require.Len(t, scenarios, 12)
}
