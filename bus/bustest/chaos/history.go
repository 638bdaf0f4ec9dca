package chaos

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"
)

// What a Line can say.
const (
	// Of a worker's handlers.
	WhatReady  = "ready"  // the process has begun to work
	WhatStart  = "start"  // a handler was called
	WhatDone   = "done"   // it succeeded, and its process noticed no pause meanwhile
	WhatLate   = "late"   // it succeeded, but its process was paused meanwhile
	WhatLost   = "lost"   // its context had ended
	WhatFailed = "failed" // it returned an error
	WhatStep   = "step"   // the process is about to kill itself at this step of the bus

	// Of work under a lease.
	WhatBegin  = "begin"  // an effect begins, under an epoch of the lease
	WhatEffect = "effect" // it took place in the world
	WhatAbort  = "abort"  // it was given up, because the lease may be lost
	WhatAdopt  = "adopt"  // it had taken place already: a former owner did not note it

	// Of the batch reader.
	WhatBatch  = "batch"  // a batch is about to be committed
	WhatCommit = "commit" // it is committed
	WhatGap    = "gap"    // it does not follow what is committed

	// Of whoever breaks things.
	WhatFault   = "fault"
	WhatHealed  = "healed"
	WhatElected = "elected" // a stream or consumer has another leader
	WhatStall   = "stall"   // a process noticed that it was paused; Micros says how long
)

// Line is one line of a history. All processes append to one file: the order of
// its lines is the order of what happened.
type Line struct {
	At      int64  `json:"t"` // microseconds since 1970 by the machine's clock
	Who     string `json:"w"` // the process, or whom the fault hit
	What    string `json:"e"`
	Handler string `json:"h,omitempty"`
	Key     string `json:"k,omitempty"`
	Seq     uint64 `json:"s,omitempty"`
	Call    int64  `json:"c,omitempty"` // tells the calls of one process apart
	Op      string `json:"o,omitempty"`
	Epoch   uint64 `json:"l,omitempty"`
	Micros  int64  `json:"d,omitempty"`
	Fault   Fault  `json:"f,omitempty"`
	Server  bool   `json:"srv,omitempty"` // the fault or stall concerns a server
	Note    string `json:"n,omitempty"`
}

func (l Line) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s %s", time.UnixMicro(l.At).UTC().Format("15:04:05.000000"), l.Who, l.What)
	for _, f := range []struct{ name, v string }{{"", string(l.Fault)}, {"", l.Handler}, {"key ", l.Key}, {"op ", l.Op}, {"", l.Note}} {
		if f.v != "" {
			b.WriteString(" " + f.name + f.v)
		}
	}
	for _, f := range []struct {
		name string
		v    int64
	}{{"seq", int64(l.Seq)}, {"call", l.Call}, {"epoch", int64(l.Epoch)}, {"micros", l.Micros}} {
		if f.v != 0 {
			fmt.Fprintf(&b, " %s %d", f.name, f.v)
		}
	}
	return b.String()
}

// Log appends lines to a file that other processes append to as well.
type Log struct {
	who  string
	file *os.File
}

// OpenLog opens a history for appending in the name of a process.
func OpenLog(path, who string) (*Log, error) {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open history: %w", err)
	}
	return &Log{who: who, file: f}, nil
}

// Add writes one line, with the time and, if it has none, the process. One short
// write to a file opened for appending is never torn or overtaken.
func (l *Log) Add(line Line) {
	line.At = time.Now().UnixMicro()
	if line.Who == "" {
		line.Who = l.who
	}
	raw, err := json.Marshal(line)
	if err == nil {
		_, err = l.file.Write(append(raw, '\n'))
	}
	if err != nil {
		panic(fmt.Sprintf("history of %s: %v", l.who, err)) // a history with holes proves nothing
	}
}

// Close closes the file.
func (l *Log) Close() error { return l.file.Close() }

// Tail is a history that is still written.
type Tail struct {
	path string

	mu    sync.Mutex
	off   int64
	lines []Line
}

// NewTail returns the history in the file at path, which need not exist yet.
func NewTail(path string) *Tail { return &Tail{path: path} }

// Lines returns the lines so far. The result must not be changed.
func (t *Tail) Lines() ([]Line, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f, err := os.Open(t.path)
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read history: %w", err)
	}
	defer f.Close()
	if _, err := f.Seek(t.off, 0); err != nil {
		return nil, fmt.Errorf("read history: %w", err)
	}
	r := bufio.NewReader(f)
	for {
		raw, err := r.ReadBytes('\n')
		if err != nil {
			return t.lines, nil // the rest is read the next time
		}
		var l Line
		if err := json.Unmarshal(bytes.TrimSpace(raw), &l); err != nil {
			return t.lines, fmt.Errorf("read history: line %q: %w", raw, err)
		}
		t.off += int64(len(raw))
		t.lines = append(t.lines, l)
	}
}

// open are the calls and effects that a process has begun and not ended.
func open(lines []Line, who string) (n int) {
	calls, effects, batches := map[int64]bool{}, map[string]bool{}, 0
	for _, l := range lines {
		if l.Who != who {
			continue
		}
		switch l.What {
		case WhatStart:
			calls[l.Call] = true
		case WhatDone, WhatLate, WhatLost, WhatFailed:
			delete(calls, l.Call)
		case WhatBegin:
			effects[l.Op] = true
		case WhatEffect, WhatAbort, WhatAdopt:
			delete(effects, l.Op)
		case WhatBatch:
			batches = 1
		case WhatCommit, WhatGap:
			batches = 0
		}
	}
	return len(calls) + len(effects) + batches
}
