package chaos

import (
	"fmt"
	"strconv"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// Names of what an event of the load tells its handler, carried as labels.
const (
	labelHold   = "hold"
	labelWork   = "work"
	labelTimer  = "timer"
	labelPoison = "poison"
)

func keyName(i int) string { return "n" + strconv.Itoa(i) }

// event is the n-th event of a load.
func (l Load) event(n int) (events.Event, error) {
	key := keyName(l.Key)
	labels := map[string]string{labelHold: l.Hold.String(), labelWork: l.Work.String(), labelTimer: l.Timer.String(), labelPoison: strconv.FormatBool(l.Poison)}
	now := time.Now()
	return events.New(events.Meta{Cluster: ClusterName, Node: key, Publisher: "collector", ID: "load-" + strconv.Itoa(n), Time: now},
		events.NodeObserved{Node: key, What: events.ObservedReady, Labels: labels, At: now})
}

// instructions are what a handler reads from an event of the load.
type instructions struct {
	hold, work, timer time.Duration
	poison            bool
}

func instructionsOf(p events.NodeObserved) (in instructions, err error) {
	for name, v := range map[string]*time.Duration{labelHold: &in.hold, labelWork: &in.work, labelTimer: &in.timer} {
		if *v, err = time.ParseDuration(p.Labels[name]); err != nil {
			return in, fmt.Errorf("label %s: %w", name, err)
		}
	}
	if in.poison, err = strconv.ParseBool(p.Labels[labelPoison]); err != nil {
		return in, fmt.Errorf("label %s: %w", labelPoison, err)
	}
	return in, nil
}
