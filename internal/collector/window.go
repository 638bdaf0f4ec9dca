package collector

import (
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// defaultWindow is BatchWindow's default.
const defaultWindow = 50 * time.Millisecond

// wave tells whether pods that come together have all come. Decided upon one by one,
// the pods of a Deployment would get the smallest nodes that hold one; a pod that
// comes alone would wait for nobody.
//
// Pods are on their way while one of them has no verdict of the scheduler's, neither
// bound nor unschedulable, or came within the last tenth of the window: who creates
// pods one after the other needs less than that for each. One that nobody judges for
// SoonWindow, because its scheduler is away, is not waited for.
type wave struct {
	patience time.Duration
	unjudged map[string]time.Time // since when they are known
	queue    []arrival            // in order; some are judged by now
	last     time.Time            // when the last one came
}

type arrival struct {
	key string
	at  time.Time
}

func newWave(patience time.Duration) wave {
	return wave{patience: patience, unjudged: map[string]time.Time{}}
}

// note takes in a pod that is new or has changed.
func (w *wave) note(key string, p events.SnapshotPod, known bool, now time.Time) {
	switch {
	case p.Node != "", p.Gated, p.Deleting, !p.UnschedulableSince.IsZero(), p.VolumeProblem != "":
		delete(w.unjudged, key)
		if !known && !p.UnschedulableSince.IsZero() {
			w.last = now // it came and was judged before anybody looked
		}
	case !known:
		w.unjudged[key], w.last = now, now
		w.prune(now)
		w.queue = append(w.queue, arrival{key, now})
	}
}

func (w *wave) gone(key string) { delete(w.unjudged, key) }

// over is when no pods are on their way any more, as far as is known now; false
// while one has no verdict.
func (w *wave) over(now time.Time, gap time.Duration) (time.Time, bool) {
	w.prune(now)
	return w.last.Add(gap), len(w.unjudged) == 0
}

// prune forgets pods that have waited for too long, and judged ones at the head of
// the queue.
func (w *wave) prune(now time.Time) {
	for len(w.queue) > 0 {
		first := w.queue[0]
		at, ok := w.unjudged[first.key]
		if ok && at.Equal(first.at) && now.Sub(at) < w.patience {
			break
		}
		if ok && at.Equal(first.at) {
			delete(w.unjudged, first.key)
		}
		w.queue = w.queue[1:]
	}
}

// closes is when the window ends that began with a pressing change. It ends early for
// a pod that became unschedulable when no others are on their way and no snapshot told
// of such a pod within a window before: at most one snapshot in each window more. c.mu
// is held.
func (c *Collector) closes(began time.Time) time.Time {
	window, wide := c.window()
	end := began.Add(window)
	at := c.pending.verdictAt
	over, ok := c.wave.over(c.o.Clock.Now(), window/10)
	if at.IsZero() || !ok || wide {
		return end
	}
	return earliest(end, latest(at, latest(over, c.out.verdict.Add(window))))
}

// window returns BatchWindow, widened while decision lags behind: fewer snapshots
// that say more let it catch up.
func (c *Collector) window() (d time.Duration, wide bool) {
	const tolerated, widest = 4, 40
	d = max(c.o.BatchWindow, 0)
	if c.o.Lag == nil {
		return d, false
	}
	lag := c.o.Lag()
	if lag <= tolerated {
		return d, false
	}
	if d == 0 {
		d = defaultWindow
	}
	return d * time.Duration(min(lag, widest)), true
}

func latest(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}
