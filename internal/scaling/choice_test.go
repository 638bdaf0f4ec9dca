package scaling

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

// sized is a pool whose nodes have so many cores, and 1 GiB for each.
func sized(name string, cores int64, edit ...func(*Pool)) Pool {
	p := testPool(name)
	p.Max = 50
	p.Size = Resources{CPUMilli: 1000 * cores, MemoryBytes: cores * gi, Pods: 110}
	for _, e := range edit {
		e(&p)
	}
	return p
}

func ranked(n int) func(*Pool)        { return func(p *Pool) { p.Priority = n } }
func priced(micros int64) func(*Pool) { return func(p *Pool) { p.PriceMicros = micros } }

// chosen lets so many pods of 900m and 900 MiB look for a pool.
func chosen(t *testing.T, pods int, chain []string, pools ...Pool) Result {
	t.Helper()
	s := newSetup(t, pools...)
	s.policy.PoolChoice = chain
	s.class("web", 900)
	s.obs.Classes[0].Requests.MemoryBytes = 900 << 20
	s.pods("web", "", pods)
	return s.evaluate()
}

func TestAPoolIsChosenByTheFirstLinkThatTellsPoolsApart(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		pods      int
		chain     []string
		win, lose Pool
		code      string
		says      string
	}{
		"least waste, by default": {1, nil, sized("b", 1), sized("a", 4), "MoreWaste",
			"pool b serves the pods with 1 node and 11.1% unused, this one would leave 77.8% unused on 1"},
		"priority": {1, []string{ChoosePriority}, sized("b", 4, ranked(2)), sized("a", 1, ranked(1)), "LowerPriority",
			"pool b has priority 2, this one 1"},
		"price of what is served": {4, []string{ChoosePrice}, sized("b", 4, priced(70_000)), sized("a", 1, priced(20_000)), "HigherPrice",
			"pool b serves 4 pods for 0.07 an hour, this one 4 pods for 0.08"},
		"price, not of a node alone": {1, []string{ChoosePrice}, sized("b", 1, priced(20_000)), sized("a", 4, priced(70_000)), "HigherPrice",
			"pool b serves 1 pod for 0.02 an hour, this one 1 pod for 0.07"},
		"most pods": {4, []string{ChooseMostPods}, sized("b", 1), sized("a", 1, func(p *Pool) { p.Max = 3 }), "FewerPods",
			"pool b serves 4 pods, this one 3"},
		"least nodes": {4, []string{ChooseLeastNodes}, sized("b", 4), sized("a", 1), "MoreNodes",
			"pool b serves 4 pods with 1 node, this one 4 pods with 4"},
		"the second link, where the first is level": {4, []string{ChoosePriority, ChooseLeastNodes}, sized("b", 4), sized("a", 1), "MoreNodes", ""},
		"a link of a later version is passed over":  {1, []string{"fastest", ChoosePriority}, sized("b", 4, ranked(1)), sized("a", 1), "LowerPriority", ""},
		"the first link, whatever the second says":  {4, []string{ChoosePriority, ChooseLeastNodes}, sized("b", 1, ranked(1)), sized("a", 4), "LowerPriority", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			res := chosen(t, c.pods, c.chain, c.win, c.lose)
			require.Equal(t, Up, of(t, res, c.win.Name).Verdict)
			require.Equal(t, Held, of(t, res, c.lose.Name).Verdict)
			a := rejects(of(t, res, c.lose.Name), "pool "+c.lose.Name, c.code)
			require.NotNil(t, a, "%+v", of(t, res, c.lose.Name).Rejected)
			if c.says != "" {
				require.Equal(t, c.says, a.Reason.Message)
			}
			require.NotEmpty(t, a.Fix)
		})
	}
}

// Between equals the same workload goes to the same pool every time, whatever
// the order of the pools, and not every workload to the same one.
func TestEqualPoolsAreToldApartByAHash(t *testing.T) {
	t.Parallel()
	won := map[string]int{}
	for i := range 40 {
		class := fmt.Sprint("class-", i)
		run := func(pools ...Pool) string {
			s := newSetup(t, pools...)
			s.class(class, 900)
			s.pods(class, "", 2)
			res := s.evaluate()
			require.Len(t, res.Claims, 2)
			require.Equal(t, res.Claims[0].Pool, res.Claims[1].Pool)
			for _, p := range pools {
				if p.Name != res.Claims[0].Pool {
					require.NotNil(t, rejects(of(t, res, p.Name), "pool "+p.Name, "EqualPool"))
				}
			}
			return res.Claims[0].Pool
		}
		a := run(sized("a", 1), sized("b", 1))
		require.Equal(t, a, run(sized("b", 1), sized("a", 1)))
		won[a]++
	}
	require.Greater(t, won["a"], 5, "%v", won)
	require.Greater(t, won["b"], 5, "%v", won)
}

func TestBalanceSpreadsNewNodesOverPoolsThatAreAsGood(t *testing.T) {
	t.Parallel()
	deltas := func(res Result, pools ...string) (out []int) {
		for _, p := range pools {
			out = append(out, of(t, res, p).Delta)
		}
		return out
	}
	chain := []string{ChooseLeastWaste, ChooseBalance}
	res := chosen(t, 6, chain, sized("a", 1), sized("b", 1), sized("c", 1))
	require.Equal(t, []int{2, 2, 2}, deltas(res, "a", "b", "c"))
	for _, d := range res.Decisions {
		require.Empty(t, d.Rejected, "each had its turn")
	}

	// The pool with a minimum of three starts with three.
	res = chosen(t, 8, chain, sized("a", 1, func(p *Pool) { p.Min = 3 }), sized("b", 1))
	require.Equal(t, []int{4, 4}, deltas(res, "a", "b"), "three pods use the nodes of the minimum, the others level the pools")

	// One that wastes more is none of the equals.
	res = chosen(t, 4, chain, sized("a", 1), sized("b", 1), sized("c", 8))
	require.Equal(t, []int{2, 2, 0}, deltas(res, "a", "b", "c"))
	require.NotNil(t, rejects(of(t, res, "c"), "pool c", "MoreWaste"))

	// A pool at its maximum leaves the rest to the other.
	res = chosen(t, 6, []string{ChooseBalance}, sized("a", 1, func(p *Pool) { p.Max = 1 }), sized("b", 1))
	require.Equal(t, []int{1, 5}, deltas(res, "a", "b"))
}

func TestAPoolThatIsHeldBackLeavesThePodsToTheOther(t *testing.T) {
	t.Parallel()
	s := newSetup(t, testPool("a"), sized("b", 4))
	s.apply(Paused{Pool: "a", Actor: "bob", Reason: "work"})
	s.class("web", 900)
	s.pods("web", "", 1)
	res := s.evaluate()
	require.Equal(t, Held, of(t, res, "a").Verdict)
	require.Equal(t, Up, of(t, res, "b").Verdict)
}
