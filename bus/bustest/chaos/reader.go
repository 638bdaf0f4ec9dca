//go:build unix

package chaos

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// reader commits batches as an audit store does: in one transaction, if they
// follow what is committed; what is committed already is skipped.
type reader struct{ w *worker }

func (*reader) Name() string { return events.HandlerAuditing }

func (r *reader) HandleBatch(ctx context.Context, ds []bus.Delivery) error {
	first, last := ds[0].Sequence, ds[len(ds)-1].Sequence
	line := Line{What: WhatBatch, Handler: events.HandlerAuditing, Seq: first, Note: "to " + strconv.FormatUint(last, 10)}
	r.w.log.Add(line)
	time.Sleep(2 * time.Millisecond) // a disk
	if r.w.audit != nil {
		if err := r.w.audit.HandleBatch(ctx, ds); err != nil {
			return err
		}
	}
	n, err := commitBatch(storePath(r.w.spec.Dir), ds)
	line.What = WhatCommit
	if err != nil {
		line.What, line.Note = WhatGap, err.Error()
	} else {
		line.Note += ", new " + strconv.Itoa(n)
	}
	r.w.log.Add(line)
	return err
}

// commitBatch appends the sequences of ds that are not in the store yet.
func commitBatch(path string, ds []bus.Delivery) (n int, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		return 0, err
	}
	last, err := lastBatch(f)
	if err != nil {
		return 0, err
	}
	var out []byte
	for _, d := range ds {
		switch {
		case d.Sequence <= last:
			continue
		case d.Sequence != last+1:
			return 0, fmt.Errorf("the store ends with %d, the batch goes on with %d", last, d.Sequence)
		}
		last = d.Sequence
		n++
		out = append(strconv.AppendUint(out, d.Sequence, 10), '\n')
	}
	_, err = f.Write(out)
	return n, err
}

// lastBatch is the last number in a file of numbers.
func lastBatch(f *os.File) (uint64, error) {
	info, err := f.Stat()
	if err != nil || info.Size() == 0 {
		return 0, err
	}
	off := max(info.Size()-32, 0)
	raw := make([]byte, info.Size()-off)
	if _, err := f.ReadAt(raw, off); err != nil {
		return 0, err
	}
	fields := strings.Fields(string(raw))
	return strconv.ParseUint(fields[len(fields)-1], 10, 64)
}
