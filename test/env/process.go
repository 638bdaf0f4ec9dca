package env

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is a program that was started, as it is recorded in a file: the start
// time tells it from a later program with the same pid.
type process struct {
	Name  string `json:"name"`
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks after boot, field 22 of /proc/PID/stat
}

// processes starts programs and ends them by the records in its folder, which
// outlive this process.
type processes struct {
	stateDir string
}

func (p processes) recordFile(name string) string {
	return filepath.Join(p.stateDir, "pids", name+".json")
}

func (p processes) logFile(name string) string {
	return filepath.Join(p.stateDir, "logs", name+".log")
}

// start runs a program in a session of its own, so that it survives this
// process and its terminal.
func (p processes) start(name, command string, args ...string) error {
	for _, dir := range []string{"pids", "logs"} {
		if err := os.MkdirAll(filepath.Join(p.stateDir, dir), 0o700); err != nil {
			return err
		}
	}
	log, err := os.OpenFile(p.logFile(name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(command, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Dir = p.stateDir
	cmd.Env = append(os.Environ(), marker+"="+p.stateDir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	started, err := awaitExec(cmd.Process.Pid)
	go func() { _ = cmd.Wait() }() // reap it while this process lives; init does later
	if err != nil {
		return fmt.Errorf("start %s: %w:\n%s", name, err, p.logTail(name))
	}
	record, err := json.Marshal(process{Name: name, PID: cmd.Process.Pid, Start: started})
	if err != nil {
		return err
	}
	return os.WriteFile(p.recordFile(name), record, 0o600)
}

// awaitExec returns the start time of a program when its environment can be
// read: exec.Cmd.Start already returns when the kernel has closed the files of
// the old program, a moment before it has laid out the memory of the new one.
// Until then marked would not find it.
func awaitExec(pid int) (uint64, error) {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		started, err := startTime(pid)
		if err != nil {
			return 0, err
		}
		environ, err := os.ReadFile(environFile(pid))
		if err == nil && len(environ) > 0 {
			return started, nil
		}
		if time.Now().After(deadline) {
			return 0, fmt.Errorf("pid %d has no environment: %w", pid, err)
		}
	}
}

func environFile(pid int) string {
	return filepath.Join("/proc", strconv.Itoa(pid), "environ")
}

// list reads all records, also of programs that have ended.
func (p processes) list() ([]process, error) {
	files, err := filepath.Glob(filepath.Join(p.stateDir, "pids", "*.json"))
	if err != nil {
		return nil, err
	}
	var all []process
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		var one process
		if err := json.Unmarshal(content, &one); err != nil || one.PID <= 1 {
			continue // cut off by a crash; the marker in its environment still finds it
		}
		all = append(all, one)
	}
	return all, nil
}

// alive says whether a program of that name was started and still runs.
func (p processes) alive(name string) bool {
	content, err := os.ReadFile(p.recordFile(name))
	if err != nil {
		return false
	}
	var one process
	return json.Unmarshal(content, &one) == nil && one.alive()
}

// stop ends a program by its record: SIGTERM, after grace SIGKILL. A program
// that has ended already is success.
func (p processes) stop(name string, grace time.Duration) error {
	content, err := os.ReadFile(p.recordFile(name))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var one process
	if err := json.Unmarshal(content, &one); err == nil && one.PID > 1 {
		if err := one.end(grace); err != nil {
			return err
		}
	}
	return os.Remove(p.recordFile(name))
}

// marked finds the running programs, however they were started, whose
// environment names this state folder: children of the engine, and what a run
// that crashed had not recorded yet.
func (p processes) marked() []process {
	wanted := []byte(marker + "=" + p.stateDir)
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var found []process
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		environ, err := os.ReadFile(environFile(pid))
		if err != nil {
			continue // it ended, or it is another user's
		}
		for variable := range bytes.SplitSeq(environ, []byte{0}) {
			if bytes.Equal(variable, wanted) {
				if started, err := startTime(pid); err == nil {
					found = append(found, process{Name: "pid " + entry.Name(), PID: pid, Start: started})
				}
				break
			}
		}
	}
	return found
}

// logTail returns the end of a program's log, for error messages.
func (p processes) logTail(name string) string {
	content, _ := os.ReadFile(p.logFile(name))
	return string(tail(content, 3000))
}

// waitFor polls check until it succeeds. It gives up when the program name has
// ended, and then shows its log.
func (p processes) waitFor(ctx context.Context, name string, timeout time.Duration, check func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("%s was not ready after %s", name, timeout))
	defer cancel()
	for {
		err := check(ctx)
		if err == nil {
			return nil
		}
		if !p.alive(name) {
			return fmt.Errorf("%s ended:\n%s", name, p.logTail(name))
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w\n%s", context.Cause(ctx), err, p.logTail(name))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// alive is false for a zombie, which only waits for its parent.
func (p process) alive() bool {
	started, err := startTime(p.PID)
	return err == nil && started == p.Start
}

func (p process) end(grace time.Duration) error {
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		if !p.alive() {
			return nil
		}
		if signal == syscall.SIGTERM && grace == 0 {
			continue
		}
		if err := syscall.Kill(p.PID, signal); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("end %s (pid %d): %w", p.Name, p.PID, err)
		}
		patience := grace
		if signal == syscall.SIGKILL {
			patience = 10 * time.Second
		}
		for deadline := time.Now().Add(patience); p.alive() && time.Now().Before(deadline); {
			time.Sleep(10 * time.Millisecond)
		}
	}
	if p.alive() {
		return fmt.Errorf("end %s (pid %d): it survives SIGKILL", p.Name, p.PID)
	}
	return nil
}

var errDead = errors.New("the process has ended")

// startTime returns field 22 of /proc/PID/stat, or errDead for a zombie.
func startTime(pid int) (uint64, error) {
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return 0, err
	}
	return parseStartTime(string(stat))
}

func parseStartTime(stat string) (uint64, error) {
	// The second field is the program's name in parentheses, and may itself
	// hold blanks and parentheses: count from the last one.
	end := strings.LastIndexByte(stat, ')')
	if end < 0 {
		return 0, fmt.Errorf("not a stat line: %q", stat)
	}
	fields := strings.Fields(stat[end+1:])
	const state, start = 0, 19 // fields 3 and 22
	if len(fields) <= start {
		return 0, fmt.Errorf("a stat line of %d fields", len(fields))
	}
	if fields[state] == "Z" || fields[state] == "X" {
		return 0, errDead
	}
	return strconv.ParseUint(fields[start], 10, 64)
}
