package collector

import (
	"context"
	"errors"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// recordsRetry is how long to wait before a broken watch of records is opened again.
const recordsRetry = time.Second

// followRecords keeps the node records up to date until ctx ends. synced is
// closed when all present ones have been seen once.
func (c *Collector) followRecords(ctx context.Context, synced chan struct{}) {
	if c.o.Records == nil {
		close(synced)
		return
	}
	told := false
	for ctx.Err() == nil {
		err := c.watchRecords(ctx, func() {
			if told {
				told = false
				c.log.InfoContext(ctx, "node records can be watched again")
			}
			if synced != nil {
				close(synced)
				synced = nil
			}
		})
		c.mu.Lock()
		c.fresh.records.open = false
		c.mu.Unlock()
		if ctx.Err() == nil && !told {
			told = true
			c.log.WarnContext(ctx, "node records can't be watched; snapshots keep the last known ones and say since when they are old", "err", err)
		}
		select {
		case <-ctx.Done():
		case <-c.o.Clock.After(recordsRetry):
		}
	}
}

// watchRecords takes over one watch. What the watch does not send before its
// mark is gone.
func (c *Collector) watchRecords(ctx context.Context, synced func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	changes, err := c.o.Records.Watch(ctx)
	if err != nil {
		return err
	}
	present := map[string]bool{}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case change, ok := <-changes:
			if !ok {
				return errors.New("the watch ended")
			}
			if change.Synced {
				c.recordsSynced(present)
				synced()
				continue
			}
			present[change.Record.Name] = !change.Deleted
			c.changeRecord(change)
		}
	}
}

func (c *Collector) recordsSynced(present map[string]bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name := range c.model.records {
		if !present[name] {
			drop(c, c.model.records, events.KindRecord, name, pressing)
		}
	}
	c.fresh.records.open, c.fresh.records.at = true, c.o.Clock.Now()
}

func (c *Collector) changeRecord(change RecordChange) {
	c.mu.Lock()
	defer c.mu.Unlock()
	name := change.Record.Name
	if change.Deleted {
		drop(c, c.model.records, events.KindRecord, name, pressing)
	} else if _, _, differs := put(c.model.records, name, change.Record); differs {
		c.touch(events.KindRecord, name, pressing)
	}
	if c.fresh.records.open {
		c.fresh.records.at = c.o.Clock.Now()
	}
}

// busAnswered notes that the bus, where the records live, answered what was
// asked at a time: an open watch of records was current then. c.mu is held.
func (c *Collector) busAnswered(asked time.Time) {
	if r := &c.fresh.records; r.open && asked.After(r.at) {
		r.at = asked
	}
}
