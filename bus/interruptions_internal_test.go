package bus

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/utils/clock"
)

func TestInterruptionsOfAMomentAreOneLineThatNamesThemAll(t *testing.T) {
	t.Parallel()
	synctest.Test(t, interruptionsOfAMoment)
}

func interruptionsOfAMoment(t *testing.T) {
	var buf bytes.Buffer
	text := slog.NewTextHandler(&buf, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}})
	i := newInterruptions(slog.New(text), clock.RealClock{}, Times{}.withDefaults())
	said := func() []string {
		i.mu.Lock() // lines are written under it
		defer i.mu.Unlock()
		defer buf.Reset()
		return strings.Split(strings.TrimSuffix(buf.String(), "\n"), "\n")
	}
	step := func(d time.Duration) {
		time.Sleep(d)
		synctest.Wait()
	}
	change := errors.New("nats: leadership change")

	for p := range Partitions {
		i.add(pullOf{"provisioning", p}, change)
		step(50 * time.Millisecond)
	}
	i.add(pullOf{"draining", 3}, fmt.Errorf("consumer draining-3: %w", change))
	i.add(pullOf{"draining", 4}, errors.New("odd"))
	i.add(pullOf{"draining", 9}, fmt.Errorf("consumer draining-9: %w", change))
	i.add(pullOf{"draining", 9}, fmt.Errorf("consumer draining-9: %w", change))
	require.Equal(t, []string{""}, said(), "it waits for more")
	step(200 * time.Millisecond)
	require.Equal(t, []string{`level=WARN msg="pulling events interrupted, it goes on" partitions=19 which="draining 3-4 9, provisioning 0-15" why="nats: leadership change (19 times); odd"`}, said())
	step(time.Hour)
	require.Equal(t, []string{""}, said(), "there is nothing more to say")

	// One that stays interrupted is named, as often as it is tried again at most.
	for range 20 {
		i.add(pullOf{"provisioning", 7}, errors.New("consumer deleted"))
		step(2 * time.Second)
	}
	require.Equal(t, []string{
		`level=WARN msg="pulling events interrupted, it goes on" partitions=1 which="provisioning 7" why="consumer deleted"`,
		`level=WARN msg="pulling events interrupted, it goes on" partitions=1 which="provisioning 7" why="consumer deleted (15 times)"`,
	}, said())
	i.flush() // the process ends
	require.Equal(t, []string{`level=WARN msg="pulling events interrupted, it goes on" partitions=1 which="provisioning 7" why="consumer deleted (4 times)"`}, said())
	i.flush()
	step(time.Hour)
	require.Equal(t, []string{""}, said(), "it was said already")

	for n := range 7 {
		i.add(pullOf{"provisioning", n}, fmt.Errorf("reason %d", n))
	}
	step(time.Second)
	require.Contains(t, said()[0], `why="reason 0; reason 1; reason 2; reason 3; reason 4; and 2 other reasons"`)
}
