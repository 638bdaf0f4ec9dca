package scaling

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"pgregory.net/rapid"
)

// draw is a setup whose cluster and story rapid chooses.
func draw(t *rapid.T, tb testing.TB) *setup {
	var pools []Pool
	for i := range rapid.IntRange(1, 3).Draw(t, "pools") {
		p := testPool(fmt.Sprint("pool-", i))
		p.Min = rapid.IntRange(0, 2).Draw(t, "min")
		p.Max = p.Min + rapid.IntRange(0, 4).Draw(t, "room")
		p.MaxRemovals = rapid.IntRange(0, 3).Draw(t, "max removals")
		for _, d := range []*time.Duration{&p.Unneeded, &p.Stabilization, &p.MinLifetime, &p.ScaleDownAfterAdd, &p.ScaleDownCooldown, &p.ScaleUpCooldown} {
			*d = time.Duration(rapid.IntRange(0, 3).Draw(t, "minutes")) * time.Minute
		}
		cores := int64(rapid.IntRange(1, 3).Draw(t, "cores"))
		p.Size.CPUMilli, p.Size.MemoryBytes = cores*p.Size.CPUMilli, cores*p.Size.MemoryBytes
		p.ReplaceUnreadyAfter = time.Duration(rapid.IntRange(0, 2).Draw(t, "replaced after")) * time.Minute
		p.RepairAfter = time.Duration(rapid.IntRange(0, 3).Draw(t, "repaired after")) * time.Minute
		p.Priority = rapid.IntRange(-1, 1).Draw(t, "priority")
		p.PriceMicros = rapid.Int64Range(0, 3).Draw(t, "price") * 10_000
		if rapid.Bool().Draw(t, "tainted") {
			p.Taints = []corev1.Taint{{Key: "team", Value: p.Name, Effect: corev1.TaintEffectNoSchedule}}
		}
		if rapid.Bool().Draw(t, "headroom") {
			p.Headroom = someHeadroom(t)
		}
		for i := range rapid.IntRange(0, 2).Draw(t, "schedules") {
			w := Schedule{Name: fmt.Sprint("s", i), Window: Window{Schedule: fmt.Sprintf("%d * * * *", rapid.IntRange(0, 59).Draw(t, "begins")),
				Duration: time.Duration(rapid.IntRange(1, 60).Draw(t, "lasts")) * time.Minute}}
			if rapid.Bool().Draw(t, "sets min") {
				w.Min = new(rapid.IntRange(0, 6).Draw(t, "its min"))
			}
			if rapid.Bool().Draw(t, "sets max") {
				w.Max = new(rapid.IntRange(0, 6).Draw(t, "its max"))
			}
			if rapid.IntRange(0, 3).Draw(t, "sets headroom") == 0 {
				w.Headroom = someHeadroom(t)
			}
			p.Schedules = append(p.Schedules, w)
		}
		pools = append(pools, p)
	}
	s := newSetup(tb, pools...)
	s.policy.StartupGrace = 0
	ways := slices.Sorted(maps.Keys(criteria))
	s.policy.PoolChoice = rapid.Permutation(ways).Draw(t, "choice")[:rapid.IntRange(0, len(ways)).Draw(t, "links")]
	s.policy.MaxUnreadyCount = rapid.IntRange(0, 5).Draw(t, "max unready")
	for range rapid.IntRange(0, 2).Draw(t, "foreign") {
		s.foreign(fmt.Sprint("server-", len(s.obs.Nodes)), 2000)
	}
	for _, p := range pools {
		for range rapid.IntRange(0, p.Max).Draw(t, "nodes") {
			s.node(p.Name, fmt.Sprint(p.Name, "-n", len(s.obs.Nodes)))
		}
		s.rule("Busy-"+p.Name, p.Name, Up, rapid.IntRange(1, 3).Draw(t, "amount"))
		s.rule("Quiet-"+p.Name, p.Name, Down, rapid.IntRange(1, 3).Draw(t, "amount"))
	}
	for i := range rapid.IntRange(0, 3).Draw(t, "metrics") {
		s.policy.MetricRules = append(s.policy.MetricRules, someMetricRule(t, fmt.Sprint("metric-", i), pools))
	}
	for i := range rapid.IntRange(1, 4).Draw(t, "classes") {
		c := s.class(fmt.Sprint("class-", i), int64(rapid.IntRange(1, 1100).Draw(t, "cpu")))
		if rapid.Bool().Draw(t, "tolerant") {
			c.Tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists}}
		}
		if rapid.IntRange(0, 5).Draw(t, "simulated") == 0 {
			c.Unsimulated = []string{"podAffinity"}
		}
	}
	if rapid.Bool().Draw(t, "constrained") {
		constrain(t, s)
	}
	if rapid.Bool().Draw(t, "protect") && len(s.obs.Nodes) > 0 {
		s.policy.ProtectedNodes = []string{s.obs.Nodes[len(s.obs.Nodes)-1].Name}
	}
	return s
}

func someHeadroom(t *rapid.T) *Headroom {
	return &Headroom{Pods: rapid.IntRange(0, 4).Draw(t, "spare pods"), Percent: rapid.IntRange(0, 60).Draw(t, "spare percent"),
		Pod: Resources{CPUMilli: int64(rapid.IntRange(1, 1500).Draw(t, "spare cpu")), MemoryBytes: int64(rapid.IntRange(1, 600).Draw(t, "spare Mi")) << 20}}
}

// happen lets something happen in the world.
func happen(t *rapid.T, s *setup) {
	s.now = s.now.Add(time.Duration(rapid.IntRange(0, 90).Draw(t, "seconds")) * time.Second)
	pools := s.policy.Pools
	pool := pools[rapid.IntRange(0, len(pools)-1).Draw(t, "pool")].Name
	node := ""
	if len(s.obs.Nodes) > 0 {
		node = s.obs.Nodes[rapid.IntRange(0, len(s.obs.Nodes)-1).Draw(t, "node")].Name
	}
	switch rapid.IntRange(0, 14).Draw(t, "what") {
	case 0:
		s.pods(s.obs.Classes[rapid.IntRange(0, len(s.obs.Classes)-1).Draw(t, "class")].ID, "", rapid.IntRange(1, 5).Draw(t, "pods"))
	case 1:
		if len(s.obs.Pods) > 0 {
			i := rapid.IntRange(0, len(s.obs.Pods)-1).Draw(t, "pod")
			s.obs.Pods = slices.Delete(s.obs.Pods, i, i+1)
		}
	case 2:
		s.bind(s.obs.Classes[0].ID, node, 2)
	case 3:
		s.fire(rapid.SampledFrom([]string{"Busy-", "Quiet-"}).Draw(t, "alert") + pool)
	case 4:
		s.state.Alerts = nil
	case 5:
		r := Request{ID: fmt.Sprint("r", s.step), Action: rapid.SampledFrom([]string{ActionUp, ActionDown, ActionTo}).Draw(t, "action"), Pool: pool,
			Count: rapid.IntRange(0, 5).Draw(t, "count"), Override: rapid.Bool().Draw(t, "override")}
		if r.Action != ActionDown && rapid.Bool().Draw(t, "hold") {
			r.HoldUntil = s.now.Add(time.Duration(rapid.IntRange(1, 20).Draw(t, "for")) * time.Minute)
		}
		s.request(r)
	case 6:
		s.request(Request{ID: fmt.Sprint("r", s.step), Action: rapid.SampledFrom([]string{ActionDrain, ActionRemove, ActionCordon, ActionUncordon}).Draw(t, "action"),
			Node: node, Override: rapid.Bool().Draw(t, "override")})
	case 7:
		s.apply(Paused{Pool: pool, Actor: "bob", Reason: "x", Until: s.now.Add(time.Minute)})
	case 8, 9:
		advance(t, s)
	case 10:
		if node != "" {
			n := s.nodeOf(node)
			n.Ready, n.ReadySince = !n.Ready, s.now
			for i := range s.obs.Records {
				if r := &s.obs.Records[i]; r.Name == node && (r.Phase == PhaseReady || r.Phase == PhaseUnready) {
					r.Phase, r.Since = map[bool]string{true: PhaseReady, false: PhaseUnready}[n.Ready], s.now
				}
			}
		}
	case 11:
		if len(s.obs.Pods) > 0 {
			s.obs.Pods[rapid.IntRange(0, len(s.obs.Pods)-1).Draw(t, "pod")].OwnerKind = ""
		}
	case 12, 13:
		for _, r := range s.policy.MetricRules {
			switch rapid.IntRange(0, 3).Draw(t, "value of "+r.Name) {
			case 0:
				s.signal(r.Name, nil)
			case 1, 2:
				s.say(r.Name, rapid.Float64Range(-1, 8).Draw(t, "value"))
			}
		}
	}
}

// advance lets claims and drains go on, one way or the other.
func advance(t *rapid.T, s *setup) {
	for _, c := range sortedClaims(s.state) {
		switch rapid.IntRange(0, 3).Draw(t, "claim") {
		case 0:
			s.ready(c)
		case 1:
			s.drop(c.Node)
			s.take(c, PhaseFailed)
		case 2:
			s.drop(c.Node)
			s.take(c, PhaseCreated)
		}
	}
	for _, name := range sortedKeys(s.state.Drains) {
		if !slices.ContainsFunc(s.obs.Records, func(r Record) bool { return r.Name == name }) {
			continue
		}
		rec := s.record(name)
		switch rapid.IntRange(0, 4).Draw(t, "drain") {
		case 0:
			s.drop(name)
		case 1:
			rec.Drain = &DrainRecord{Goal: GoalRemove, Phase: DrainDone, RequestID: fmt.Sprint("d", s.step)}
		case 2:
			rec.Drain = &DrainRecord{Goal: GoalRemove, Phase: DrainDraining, RequestID: fmt.Sprint("d", s.step)}
		case 3:
			rec.Drain = &DrainRecord{Goal: GoalRemove, Phase: DrainDrained, RequestID: fmt.Sprint("d", s.step)}
		}
	}
}

// physical counts what exists or is going to, as an outsider would.
func physical(s *setup, state State, pool string) int {
	names := map[string]bool{}
	for _, r := range s.obs.Records {
		if r.Pool == pool && !r.gone() {
			names[r.Name] = true
		}
	}
	for _, c := range state.Claims {
		if c.Pool == pool {
			names[c.Node] = true
		}
	}
	return len(names)
}

// limits are those of a pool as an outsider reads them off a clock: its schedules
// begin at a minute of every hour.
func limits(p Pool, now time.Time) (least, most int) {
	var mins, maxs []int
	for _, w := range p.Schedules {
		var begins int
		_, _ = fmt.Sscan(w.Schedule, &begins)
		if (now.Minute()-begins+60)%60 >= int(w.Duration/time.Minute) {
			continue
		}
		if w.Min != nil {
			mins = append(mins, *w.Min)
		}
		if w.Max != nil {
			maxs = append(maxs, *w.Max)
		}
	}
	least, most = p.Min, p.Max
	if len(maxs) > 0 {
		most = slices.Min(maxs)
	}
	if len(mins) > 0 {
		least = slices.Max(mins)
	}
	return min(least, most), most
}

func limitsMin(p Pool, now time.Time) int {
	least, _ := limits(p, now)
	return least
}

func TestWhateverHappensTheLimitsHold(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		s := draw(rt, t)
		for range rapid.IntRange(1, 25).Draw(rt, "steps") {
			happen(rt, s)
			before := s.state
			s.obs.Known = rapid.IntRange(0, 9).Draw(rt, "known") > 0
			stale := rapid.IntRange(0, 9).Draw(rt, "stale") == 0
			if stale {
				s.now = s.now.Add(time.Hour)
				s.frozen = true
			}
			res := s.evaluate()
			s.frozen = false
			check(t, s, before, res, stale)
		}
	})
}

func check(t *testing.T, s *setup, before State, res Result, stale bool) {
	removals := map[string]int{}
	for _, o := range res.Drains {
		require.True(t, s.obs.Known, "nothing is done on unknown data")
		rec := s.record(o.Node)
		require.Equal(t, rec.ClaimID, s.nodeOf(o.Node).Labels[LabelClaim], "only our nodes")
		require.NotEmpty(t, o.Reason.Code)
		if o.Goal == GoalCordon {
			continue
		}
		require.NotContains(t, s.policy.ProtectedNodes, o.Node)
		require.False(t, stale, "stale data removes nothing")
		for _, p := range s.obs.Pods {
			if p.Node == o.Node && !o.Unready {
				require.NotEmpty(t, p.OwnerKind, "a pod without a controller is lost")
			}
		}
		if o.Goal == GoalRemove {
			removals[o.Pool]++
			require.Contains(t, res.State.Drains, o.Node)
		}
	}
	claims := map[string]bool{}
	for _, c := range res.Claims {
		require.True(t, s.obs.Known)
		require.False(t, claims[c.Node], "a name is given once")
		claims[c.Node] = true
		require.NotContains(t, before.Claims, c.Node)
	}
	for _, p := range s.policy.Pools {
		least, most := limits(p, s.now)
		least = max(least, min(Floor(before.HoldsOf(p.Name, s.now)), most))
		d := of(t, res, p.Name)
		require.Equal(t, most, d.Max)
		if s.obs.Known { // a request of this evaluation may keep more
			require.GreaterOrEqual(t, d.Min, least)
			require.Equal(t, max(limitsMin(p, s.now), min(Floor(res.State.HoldsOf(p.Name, s.now)), most)), d.Min)
		}
		if added := slices.ContainsFunc(res.Claims, func(c Claim) bool { return c.Pool == p.Name }); added {
			require.LessOrEqual(t, physical(s, res.State, p.Name), most, "claims in flight count for max")
		}
		if removals[p.Name] == 0 {
			continue
		}
		staying := 0
		for _, r := range s.obs.Records {
			if _, leaves := res.State.Drains[r.Name]; r.Pool == p.Name && r.Phase == PhaseReady && !leaves && s.nodeOf(r.Name).Ready {
				staying++
			}
		}
		unready := slices.ContainsFunc(res.Drains, func(o Order) bool { return o.Pool == p.Name && !s.nodeOf(o.Node).Ready })
		require.True(t, staying >= least || unready, "%d stay, min is %d", staying, least)
	}
	for _, d := range res.Decisions {
		require.NotEmpty(t, d.Reason.Code)
		require.NotEmpty(t, d.Reason.Message)
		require.NotEmpty(t, d.ID)
	}
}

func TestTheOrderOfWhatIsObservedDoesNotMatterAndTheStateSurvivesJSON(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		s := draw(rt, t)
		for range rapid.IntRange(1, 12).Draw(rt, "steps") {
			happen(rt, s)
			state, obs, policy := s.state, s.obs, s.policy
			res := s.evaluate()
			obs.CapturedAt, obs.Freshness = s.obs.CapturedAt, s.obs.Freshness
			untouched := encode(t, state) + encode(t, obs)

			rnd := rand.New(rand.NewSource(rapid.Int64().Draw(rt, "shuffle")))
			shuffled := obs
			shuffled.Nodes, shuffled.Classes, shuffled.Pods = mix(rnd, obs.Nodes), mix(rnd, obs.Classes), mix(rnd, obs.Pods)
			shuffled.Budgets, shuffled.DaemonSets, shuffled.Records = mix(rnd, obs.Budgets), mix(rnd, obs.DaemonSets), mix(rnd, obs.Records)
			shuffled.Usage = mix(rnd, obs.Usage)
			policy.Pools, policy.AlertRules, policy.MetricRules = mix(rnd, policy.Pools), mix(rnd, policy.AlertRules), mix(rnd, policy.MetricRules)
			var stored State
			require.NoError(t, json.Unmarshal([]byte(encode(t, state)), &stored))
			again := Evaluate(s.now, policy, stored, shuffled, testSeed(fmt.Sprint("event-", s.step)))
			if want, got := encode(t, res), encode(t, again); want != got {
				i := 0
				for i < min(len(want), len(got)) && want[i] == got[i] {
					i++
				}
				require.Fail(t, "differs", "at %d:\n%s\n%s", i, want[max(i-200, 0):min(i+300, len(want))], got[max(i-200, 0):min(i+300, len(got))])
			}
			require.Equal(t, res.State.Digest(), again.State.Digest())
			require.Equal(t, untouched, encode(t, state)+encode(t, obs), "the input is left alone")
		}
	})
}

func mix[T any](rnd *rand.Rand, in []T) []T {
	out := slices.Clone(in)
	rnd.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

func encode(t *testing.T, v any) string {
	t.Helper()
	raw, err := json.Marshal(v)
	require.NoError(t, err)
	return string(raw)
}

func BenchmarkScaleUp(b *testing.B) {
	for _, pods := range []int{500, 5000} {
		b.Run(fmt.Sprint(pods, " pods"), func(b *testing.B) {
			p := testPool("a")
			p.Max = maxClaims
			s := newSetup(b, p)
			for i := range 10 {
				s.class(fmt.Sprint("class-", i), int64(50+10*i))
				s.pods(fmt.Sprint("class-", i), "", pods/10)
			}
			bench(b, s)
		})
	}
}

func BenchmarkNothingToDo(b *testing.B) {
	for _, nodes := range []int{100, 1000} {
		b.Run(fmt.Sprint(nodes, " nodes"), func(b *testing.B) {
			p := testPool("a")
			p.Max, p.UtilizationThreshold = nodes, 0.9
			s := newSetup(b, p)
			s.class("web", 20)
			for i := range nodes {
				name := fmt.Sprintf("a-%04d", i)
				s.node("a", name)
				s.pods("web", name, 40)
			}
			bench(b, s)
		})
	}
}

func bench(b *testing.B, s *setup) {
	s.evaluate()
	state := s.state
	b.ReportAllocs()
	for b.Loop() {
		s.state, s.step = state, 0
		s.evaluate()
	}
}

func BenchmarkScaleDown(b *testing.B) {
	for _, nodes := range []int{100, 1000} {
		b.Run(fmt.Sprint(nodes, " nodes"), func(b *testing.B) {
			p := testPool("a")
			p.Max, p.UtilizationThreshold, p.MaxRemovals = nodes, 0.9, 50
			s := newSetup(b, p)
			for i := range 100 {
				c := s.class(fmt.Sprint("class-", i), int64(10+i%7*10))
				c.Requests.MemoryBytes = int64(1+i%5) << 20
				switch i % 10 {
				case 0:
					c.PodAntiAffinity = by(host, c.ID)
				case 1:
					c.Spread = spreadBy(host, c.ID, 2)
				}
			}
			for i := range nodes {
				name := fmt.Sprintf("a-%04d", i)
				s.node("a", name)
				for j := range 12 {
					s.pods(fmt.Sprint("class-", (i+7*j)%100), name, 1)
				}
			}
			bench(b, s)
		})
	}
}
