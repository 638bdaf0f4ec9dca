//go:build crashtest

package app

import (
	"errors"
	"os"
	"strconv"
	"sync/atomic"
	"syscall"
)

// crashHook ends the process by SIGKILL at the step named by
// K3S_AUTOSCALER_CRASH_AT, at its K3S_AUTOSCALER_CRASH_COUNT-th passing
// (default the first), after it has written the step to the file named by
// K3S_AUTOSCALER_CRASH_MARK. Of several processes with one such file, the first to
// get there dies, and the others go on. It is compiled into the end-to-end tests'
// binary alone. With K3S_AUTOSCALER_STEPS every step is appended to that file.
func crashHook() func(step string) {
	at, mark, steps := os.Getenv("K3S_AUTOSCALER_CRASH_AT"), os.Getenv("K3S_AUTOSCALER_CRASH_MARK"), os.Getenv("K3S_AUTOSCALER_STEPS")
	count, err := strconv.ParseInt(os.Getenv("K3S_AUTOSCALER_CRASH_COUNT"), 10, 64)
	if err != nil {
		count = 1
	}
	var passed atomic.Int64
	return func(step string) {
		if steps != "" {
			appendLine(steps, step)
		}
		if at == "" || step != at || passed.Add(1) != count || !leaveMark(mark, step) {
			return
		}
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL) // returns only for the other threads
		select {}
	}
}

// leaveMark makes the file, and reports whether nobody has before.
func leaveMark(file, step string) bool {
	f, err := os.OpenFile(file, os.O_EXCL|os.O_CREATE|os.O_WRONLY, 0o600)
	if errors.Is(err, os.ErrExist) {
		return false
	}
	if err != nil {
		panic(err)
	}
	defer f.Close()
	if _, err := f.WriteString(step + "\n"); err != nil {
		panic(err)
	}
	return true
}

func appendLine(file, line string) {
	f, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		panic(err)
	}
	defer f.Close()
	if _, err := f.WriteString(line + "\n"); err != nil {
		panic(err)
	}
}
