package docker

import (
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/provider"
)

func room(name string, change func(*candidate)) candidate {
	c := candidate{name: name, total: size{4000, 8 << 30}, need: size{1000, 1 << 30}}
	if change != nil {
		change(&c)
	}
	return c
}

func chosen(t *testing.T, how Placement, claim, preferred string, hosts ...candidate) string {
	t.Helper()
	i, err := choose(how, claim, preferred, hosts)
	require.NoError(t, err)
	return hosts[i].name
}

func TestSpreadTakesTheHostWithTheFewestNodesOfThePool(t *testing.T) {
	t.Parallel()
	attic := room("attic", func(c *candidate) { c.nodes = 2 })
	cellar := room("cellar", func(c *candidate) { c.nodes, c.used = 1, size{3000, 7 << 30} })
	require.Equal(t, "cellar", chosen(t, Spread, "a", "", attic, cellar), "whatever else runs there")
	cellar.used.memoryBytes++
	require.Equal(t, "attic", chosen(t, Spread, "a", "", attic, cellar), "but it must have room")
}

func TestPackTakesTheHostThatIsUsedMost(t *testing.T) {
	t.Parallel()
	attic := room("attic", func(c *candidate) { c.used = size{1000, 5 << 30} })
	cellar := room("cellar", func(c *candidate) { c.used = size{2000, 2 << 30} })
	require.Equal(t, "attic", chosen(t, Pack, "a", "", attic, cellar), "memory is what it will lack first")
	attic.used.memoryBytes = 7<<30 + 1
	require.Equal(t, "cellar", chosen(t, Pack, "a", "", attic, cellar))
}

func TestEqualHostsAreToldApartByTheClaim(t *testing.T) {
	t.Parallel()
	seen := map[string]int{}
	for n := range 200 {
		claim := fmt.Sprintf("claim-%d", n)
		first := chosen(t, Spread, claim, "", room("attic", nil), room("cellar", nil))
		require.Equal(t, first, chosen(t, Spread, claim, "", room("cellar", nil), room("attic", nil)), "in any order")
		seen[first]++
	}
	require.Greater(t, seen["attic"], 50)
	require.Greater(t, seen["cellar"], 50)
}

func TestHostOfAnEarlierAttemptIsKeptIfItCanBe(t *testing.T) {
	t.Parallel()
	attic, cellar := room("attic", func(c *candidate) { c.nodes = 3 }), room("cellar", nil)
	require.Equal(t, "attic", chosen(t, Spread, "a", "attic", attic, cellar))
	attic.err = errors.New("no route")
	require.Equal(t, "cellar", chosen(t, Spread, "a", "attic", attic, cellar))
}

func TestWithoutRoomEachHostSaysWhatItLacks(t *testing.T) {
	t.Parallel()
	hosts := []candidate{
		room("attic", func(c *candidate) { c.used.cpuMilli = 3500 }),
		room("barn", func(c *candidate) { c.used.memoryBytes = 8<<30 - 1 }),
		room("cellar", func(c *candidate) { c.nodes, c.maxNodes = 3, 3 }),
		room("den", func(c *candidate) { c.err = errors.New("no route") }),
		room("eaves", func(c *candidate) { c.total.cpuMilli = 500 }),
		room("flat", func(c *candidate) { c.total.memoryBytes = 1 << 20 }),
		room("garage", func(c *candidate) { c.used.cpuMilli = 9000 }),
	}
	_, err := choose(Spread, "a", "", hosts)
	require.ErrorIs(t, err, provider.ErrNoRoom)
	require.NotErrorIs(t, err, provider.ErrRefused)
	require.EqualError(t, err, "no host has room for the machine: "+
		"host attic has 500m of 4000m of CPU left, the machine needs 1000m; "+
		"host barn has 0Mi of 8192Mi of memory left, the machine needs 1024Mi; "+
		"host cellar has 3 nodes of the pool, its max_nodes; "+
		"host den does not answer: no route; "+
		"host eaves has 500m of CPU, less than the 1000m of the machine; "+
		"host flat has 1Mi of memory, less than the 1024Mi of the machine; "+
		"host garage has 0m of 4000m of CPU left, the machine needs 1000m")

	_, err = choose(Spread, "a", "", hosts[4:6])
	require.ErrorIs(t, err, provider.ErrRefused, "no other day will be better")
	_, err = choose(Spread, "a", "", hosts[3:5])
	require.ErrorIs(t, err, provider.ErrNoRoom, "the one that is down may be larger")
	_, err = choose(Spread, "a", "", hosts[3:4])
	require.NotErrorIs(t, err, provider.ErrNoRoom, "nobody has said so: it may be back in a moment")
	require.NotErrorIs(t, err, provider.ErrRefused)
}

func TestMachineNeedsItsLimitsAndNeverLessThanItOffers(t *testing.T) {
	t.Parallel()
	s := spec()
	require.Equal(t, size{1500, 1<<30 + AgentMemoryBytes}, testHost.need(Limits{}, s))
	require.Equal(t, size{3000, 2 << 30}, testHost.need(Limits{CPUMilli: 3000, MemoryBytes: 2 << 30}, s))
	require.Equal(t, size{1500, 1 << 30}, testHost.need(Limits{CPUMilli: Unlimited, MemoryBytes: Unlimited}, s))
	s.MemoryBytes = testHost.memoryBytes
	require.Equal(t, size{1500, testHost.memoryBytes}, testHost.need(Limits{}, s), "alone on its host")
	s.MemoryBytes++
	require.Greater(t, testHost.need(Limits{}, s).memoryBytes, testHost.memoryBytes)
}

func TestGPUsAreAskedForAsDockerRunDoes(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]struct {
		count int
		ids   []string
	}{"all": {-1, nil}, "2": {2, nil}, "device=0,GPU-3a": {0, []string{"0", "GPU-3a"}}} {
		got, err := parseGPUs(s)
		require.NoError(t, err)
		require.Len(t, got, 1)
		require.Equal(t, [][]string{{"gpu"}}, got[0].Capabilities)
		require.Equal(t, want.count, got[0].Count)
		require.Equal(t, want.ids, got[0].DeviceIDs)
	}
	for _, s := range []string{"none", "0", "-1", "device=", "device=0,,1"} {
		_, err := parseGPUs(s)
		require.ErrorContains(t, err, fmt.Sprintf("gpus: is %q", s))
	}
	o := options(t)
	o.GPUs = "all"
	r, err := o.withDefaults().render(spec(), "rancher/k3s:v1.34.4-k3s1", testHost)
	require.NoError(t, err)
	require.Equal(t, -1, r.HostConfig.DeviceRequests[0].Count)
}
