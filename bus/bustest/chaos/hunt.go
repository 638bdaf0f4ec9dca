package chaos

import (
	"math/rand/v2"
	"time"
)

// Hunt makes a schedule in which the breaking of a rule of the bus shows: few
// keys, handlers and effects that take long, and the faults that the rule is
// against. mutant is the rule that workers break, see Child; "" is none.
func Hunt(seed uint64, mutant string, faults ...Injection) Schedule {
	r := rand.New(rand.NewPCG(seed, 0x6d757461))
	s := Schedule{
		Seed: seed, Topology: Single, Times: Times(), Workers: 3, Keys: 3, Mutant: mutant, Faults: faults,
		Skew: make([]time.Duration, 4), Span: 5 * time.Second,
	}
	for i := range 45 {
		s.Load = append(s.Load, Load{
			Key: i % s.Keys, At: s.Span * time.Duration(i) / 45, Hold: between(r, 0, 500*time.Millisecond), Work: between(r, 100*time.Millisecond, 400*time.Millisecond),
		})
	}
	return s
}

// HuntRedrive makes a schedule in which the breaking of a rule of redrives shows.
func HuntRedrive(seed uint64, mutant string) Schedule {
	s := Hunt(seed, mutant)
	s.Load[len(s.Load)/2].Poison = true
	s.Redrive = true
	return s
}
