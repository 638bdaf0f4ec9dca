//go:build unix

package chaos

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// process is a child.
type process struct {
	name string
	dir  string
	spec childSpec
	cmd  *exec.Cmd
	in   io.WriteCloser // its end ends the child
	out  *os.File
	done chan struct{}
	err  error // after done
}

func startProcess(dir, name string, spec childSpec) (*process, error) {
	raw, err := json.Marshal(spec)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &process{name: name, dir: dir, spec: spec, done: make(chan struct{})}
	if p.out, err = os.OpenFile(outputPath(dir, name), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p.cmd = exec.Command(self, "-test.run=^$")
	p.cmd.Env = append(os.Environ(), childEnv+"="+string(raw), "GOCOVERDIR="+dir, "GOMAXPROCS=2")
	p.cmd.Stderr = p.out
	if p.in, err = p.cmd.StdinPipe(); err == nil {
		err = p.cmd.Start()
	}
	if err != nil {
		p.out.Close()
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		p.out.Close()
		close(p.done)
	}()
	return p, nil
}

func (p *process) signal(s syscall.Signal) error {
	if err := p.cmd.Process.Signal(s); err != nil {
		return fmt.Errorf("%s: signal %s: %w", p.name, s, err)
	}
	return nil
}

// arm lets the process kill itself when it gets to a step for the nth time.
func (p *process) arm(step string, nth int) error {
	if _, err := fmt.Fprintf(p.in, "%s %d\n", step, nth); err != nil {
		if !p.running() {
			return p.ended()
		}
		return fmt.Errorf("%s: arm: %w", p.name, err)
	}
	return nil
}

// kill ends the process at once and waits until it is gone.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	<-p.done
}

// stop tells the process to end; the error says how it did.
func (p *process) stop(limit time.Duration) error {
	if p.running() {
		if err := p.signal(syscall.SIGTERM); err != nil {
			return err
		}
	}
	select {
	case <-p.done:
	case <-time.After(limit):
		p.kill()
		return fmt.Errorf("did not end within %s after SIGTERM", limit)
	}
	if p.err == nil {
		return nil
	}
	return p.ended()
}

func (p *process) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// ended says how a process ended that was not killed.
func (p *process) ended() error {
	raw, err := os.ReadFile(outputPath(p.dir, p.name))
	lines := strings.Split(strings.TrimSpace(string(raw)), "\n")
	return errors.Join(fmt.Errorf("%s ended: %w; its last words: %s", p.name, p.err, strings.Join(lines[max(len(lines)-5, 0):], "\n")), err)
}
