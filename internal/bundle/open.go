package bundle

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"slices"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/replay"
)

// Limits of what is read into memory at once, in bytes: a manifest lists every
// change of the policy, an event is a full snapshot of the largest cluster.
const (
	maxManifest = 16 << 20
	maxLine     = 512 << 20
)

// Reader reads the events of a bundle as from the stream of record.
type Reader struct {
	path string
	m    Manifest
}

var _ replay.Log = (*Reader)(nil)

// Open checks all of a bundle: its digests, that it is whole, and that its events are
// what the manifest says. The error names the file and is ErrForeign, ErrTruncated,
// ErrChanged, ErrFormat, or one of the file system.
func Open(path string) (*Reader, error) {
	r := &Reader{path: path}
	if err := r.verify(); err != nil {
		return nil, fmt.Errorf("%s %w", path, err)
	}
	return r, nil
}

// Manifest says what the bundle holds.
func (r *Reader) Manifest() Manifest { return r.m }

// TimeOf is the stream time of the first event from a sequence on; of one behind the
// end, that of the last.
func (r *Reader) TimeOf(seq uint64) (time.Time, error) {
	for d, err := range r.Read(context.Background(), bus.ReadOptions{FromSequence: seq, Limit: 1}) {
		return d.StreamTime, err
	}
	return r.m.LastTime, nil
}

// LogState implements replay.Log.
func (r *Reader) LogState(context.Context) (bus.LogState, error) {
	return bus.LogState{Exists: true, Incarnation: r.m.Incarnation, First: r.m.First, Last: r.m.Last,
		FirstTime: r.m.FirstTime, LastTime: r.m.LastTime, Events: uint64(r.m.Events), Bytes: uint64(r.m.Bytes)}, nil //nolint:gosec // verified, not negative
}

// Read implements replay.Log. It does not follow.
func (r *Reader) Read(ctx context.Context, o bus.ReadOptions) iter.Seq2[bus.Delivery, error] {
	return func(yield func(bus.Delivery, error) bool) {
		n := 0
		err := r.events(func(line []byte) (bool, error) {
			seq, err := sequence(line)
			switch {
			case err != nil:
				return false, err
			case ctx.Err() != nil:
				return false, ctx.Err()
			case seq < o.FromSequence:
				return true, nil
			case o.UntilSequence > 0 && seq > o.UntilSequence:
				return false, nil
			}
			d, err := decode(line, r.m.Incarnation)
			switch {
			case err != nil:
				return false, err
			case !o.Until.IsZero() && !d.StreamTime.Before(o.Until):
				return false, nil
			case d.StreamTime.Before(o.Since):
				return true, nil
			case o.Cluster != "" && d.Key.Cluster != o.Cluster || o.Node != "" && d.Key.Name != o.Node,
				len(o.Types) > 0 && !slices.Contains(o.Types, d.Event.Type()):
				return true, nil
			}
			n++
			return yield(d, nil) && (o.Limit <= 0 || n < o.Limit), nil
		})
		if err != nil {
			yield(bus.Delivery{}, fmt.Errorf("read %s: %w", r.path, err))
		}
	}
}

// events gives the lines until fn has enough.
func (r *Reader) events(fn func(line []byte) (bool, error)) error {
	return r.unpack(func(name string, body io.Reader) (bool, error) {
		if name != eventsName {
			return true, nil
		}
		return false, eachLine(body, fn)
	})
}

// unpack gives the files of the archive until fn has enough.
func (r *Reader) unpack(fn func(name string, body io.Reader) (bool, error)) error {
	f, err := os.Open(r.path)
	if err != nil {
		return fmt.Errorf("can't be opened: %w", err)
	}
	defer f.Close()
	z, err := zstd.NewReader(bufio.NewReaderSize(f, 1<<16), zstd.WithDecoderConcurrency(1))
	if err != nil {
		return err
	}
	defer z.Close()
	t := tar.NewReader(z)
	for first := true; ; first = false {
		h, err := t.Next()
		if errors.Is(err, io.EOF) && !first {
			// What follows the archive is checked, too: the end of the compressed data is
			// where its checksum is.
			return readable(drain(z), false)
		}
		if err != nil {
			return readable(err, first)
		}
		more, err := fn(h.Name, t)
		if err != nil || !more {
			return readable(err, false)
		}
	}
}

// drain reads what is behind the end of the archive: nothing but zeros.
func drain(z io.Reader) error {
	buf := make([]byte, 4096)
	for {
		n, err := z.Read(buf)
		if len(bytes.Trim(buf[:n], "\x00")) > 0 {
			return changed("something follows its end")
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// readable says what an error of the compression or of the archive means.
func readable(err error, first bool) error {
	switch {
	case err == nil, errors.Is(err, ErrChanged), errors.Is(err, ErrForeign), errors.Is(err, ErrTruncated), errors.Is(err, ErrFormat),
		errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.Is(err, zstd.ErrMagicMismatch) && first, errors.Is(err, tar.ErrHeader) && first, errors.Is(err, io.EOF) && first:
		return ErrForeign
	case errors.Is(err, io.ErrUnexpectedEOF):
		return ErrTruncated
	}
	return changed("%v", err)
}

// eachLine gives the lines of a file; the last one ends as all others do.
func eachLine(body io.Reader, fn func(line []byte) (bool, error)) error {
	b := bufio.NewReaderSize(body, 1<<18)
	var long []byte
	for {
		part, err := b.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			if long = append(long, part...); len(long) > maxLine {
				return changed("a line of %s is larger than %d MiB", eventsName, maxLine>>20)
			}
			continue
		}
		line := part
		if len(long) > 0 {
			long = append(long, part...)
			line, long = long, nil
		}
		if errors.Is(err, io.EOF) {
			if len(line) > 0 {
				return changed("%s ends within a line", eventsName)
			}
			return nil
		}
		if err != nil {
			return err
		}
		if more, err := fn(line); err != nil || !more {
			return err
		}
	}
}

// verify reads the whole file and keeps its manifest.
func (r *Reader) verify() error {
	want := []string{manifestName, eventsName, sumsName}
	var sums [2]string
	err := r.unpack(func(name string, body io.Reader) (bool, error) {
		switch {
		case len(want) == 0:
			return false, changed("it holds one file more, %s", name)
		case name != want[0] && len(want) == 3:
			return false, ErrForeign
		case name != want[0]:
			return false, changed("it holds %s, expected %s", name, want[0])
		}
		want = want[1:]
		switch name {
		case manifestName:
			return true, r.readManifest(body, &sums[0])
		case eventsName:
			return true, r.verifyEvents(body, &sums[1])
		}
		return true, verifySums(body, sums)
	})
	if err != nil {
		return err
	}
	if len(want) > 0 {
		return changed("it lacks %s", want[0])
	}
	return nil
}

func (r *Reader) readManifest(body io.Reader, sum *string) error {
	raw, err := io.ReadAll(io.LimitReader(body, maxManifest+1))
	if err != nil {
		return err
	}
	if len(raw) > maxManifest {
		return changed("%s is larger than %d MiB", manifestName, maxManifest>>20)
	}
	var format struct{ Format string }
	if err := json.Unmarshal(raw, &format); err != nil || format.Format == "" {
		return ErrForeign
	}
	if format.Format != Format {
		return fmt.Errorf("%w: is %q, expected %q; use the version of k3s-autoscaler that made it", ErrFormat, format.Format, Format)
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	if err := dec.Decode(&r.m); err != nil {
		return changed("%s can't be read: %v", manifestName, err)
	}
	digest := sha256.Sum256(raw)
	*sum = hex.EncodeToString(digest[:])
	return nil
}

// verifyEvents counts and hashes the events, which must ascend as the manifest says.
func (r *Reader) verifyEvents(body io.Reader, sum *string) error {
	digest := sha256.New()
	count, first, last := 0, uint64(0), uint64(0)
	err := eachLine(body, func(line []byte) (bool, error) {
		digest.Write(line) // a hash never fails
		seq, err := sequence(line)
		if err != nil {
			return false, err
		}
		if seq <= last {
			return false, changed("event %d follows event %d", seq, last)
		}
		if count == 0 {
			first = seq
		}
		last = seq
		count++
		return true, nil
	})
	if err != nil {
		return err
	}
	*sum = hex.EncodeToString(digest.Sum(nil))
	switch {
	case *sum != r.m.Digest:
		return changed("%s has the SHA-256 %s, the manifest says %s", eventsName, *sum, r.m.Digest)
	case count != r.m.Events || first != r.m.First || last != r.m.Last:
		return changed("%s holds %d events from %d to %d, the manifest says %d from %d to %d", eventsName, count, first, last, r.m.Events, r.m.First, r.m.Last)
	}
	return nil
}

func verifySums(body io.Reader, sums [2]string) error {
	raw, err := io.ReadAll(io.LimitReader(body, 4096))
	if err != nil {
		return err
	}
	if want := fmt.Sprintf("%s  %s\n%s  %s\n", sums[0], manifestName, sums[1], eventsName); string(raw) != want {
		return changed("the digests in %s are not those of its files", sumsName)
	}
	return nil
}
