package simulated

import (
	"strings"
	"sync"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/provider"
)

// Engine holds machines, as a Docker engine does: they are there while the
// processes that make them come and go. The zero value has none.
type Engine struct {
	mu       sync.Mutex // guards what follows, also within the machines
	machines map[string]*machine
	made     int
}

type machine struct {
	provider.Machine
	spec provider.Spec
	log  lines
}

// maxLogLines is how much of its output a machine keeps.
const maxLogLines = 1000

// lines is what an agent wrote. It has a lock of its own, since the first line
// comes from within Start.
type lines struct {
	mu  sync.Mutex
	all []string
}

func (l *lines) add(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, line)
	if len(l.all) > maxLogLines {
		l.all = l.all[len(l.all)-maxLogLines:]
	}
}

// last returns at most n bytes of the end.
func (l *lines) last(n int) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := strings.Join(l.all, "\n")
	return strings.ToValidUTF8(s[max(0, len(s)-max(0, n)):], "")
}
