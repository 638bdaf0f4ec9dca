// Command runcshim is an OCI runtime for machines that lack capabilities, such
// as sandboxes whose bounding set has no CAP_SYS_RESOURCE: there runc refuses a
// privileged container, since it cannot grant what the machine does not have.
// The shim takes the missing capabilities out of the container's (or the exec's)
// configuration and then becomes runc; nothing else changes, and the engine
// still reports the container as privileged.
//
// It is for tests only.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// capabilities in the order of their bits, from capability.h.
var capabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN",
	"CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT",
	"CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE",
	"CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL",
	"CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND",
	"CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
}

func main() {
	err := become(os.Args[1:])
	fmt.Fprintln(os.Stderr, "runcshim:", err)
	os.Exit(1)
}

// become rewrites the configuration that args point at and executes runc. It
// returns only with an error.
func become(args []string) error {
	runc, err := exec.LookPath("runc")
	if err != nil {
		return fmt.Errorf("find runc: %w", err)
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return fmt.Errorf("read own capabilities: %w", err)
	}
	bounding, err := boundingSet(status)
	if err != nil {
		return err
	}
	if file := configFile(args); file != "" {
		if err := rewrite(file, granted(bounding)); err != nil {
			return fmt.Errorf("take capabilities out of %s: %w", file, err)
		}
	}
	return syscall.Exec(runc, append([]string{"runc"}, args...), os.Environ())
}

// boundingSet reads CapBnd of a /proc/PID/status.
func boundingSet(status []byte) (uint64, error) {
	for line := range strings.Lines(string(status)) {
		if hex, ok := strings.CutPrefix(line, "CapBnd:"); ok {
			return strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
		}
	}
	return 0, errors.New("/proc/self/status has no CapBnd")
}

func granted(bounding uint64) map[string]bool {
	have := make(map[string]bool, len(capabilities))
	for bit, name := range capabilities {
		have[name] = bounding&(1<<bit) != 0
	}
	return have
}

// configFile returns the file that holds the process to be started: the
// bundle's config.json for create and run, the process file for exec, or none.
func configFile(args []string) string {
	switch {
	case slices.Contains(args, "create"), slices.Contains(args, "run"):
		bundle := flagValue(args, "bundle", "b")
		if bundle == "" {
			bundle = "." // runc's default
		}
		return filepath.Join(bundle, "config.json")
	case slices.Contains(args, "exec"):
		return flagValue(args, "process", "p")
	}
	return ""
}

// flagValue finds --long VALUE, --long=VALUE, -short VALUE and -short=VALUE.
func flagValue(args []string, long, short string) string {
	for i, arg := range args {
		name, value, joined := strings.Cut(arg, "=")
		if name != "--"+long && name != "-"+long && name != "-"+short {
			continue
		}
		if joined {
			return value
		}
		if i+1 < len(args) {
			return args[i+1]
		}
	}
	return ""
}

// rewrite removes from every capability set in file what is not in have.
func rewrite(file string, have map[string]bool) error {
	content, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	stripped, err := strip(content, have)
	if err != nil {
		return err
	}
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	return os.WriteFile(file, stripped, info.Mode().Perm())
}

// strip works on a bundle's config.json, whose process is a member, and on an
// exec's process.json, which is one.
func strip(content []byte, have map[string]bool) ([]byte, error) {
	var config map[string]any
	decoder := json.NewDecoder(bytes.NewReader(content))
	decoder.UseNumber() // sizes beyond 2^53 must survive
	if err := decoder.Decode(&config); err != nil {
		return nil, err
	}
	process := config
	if member, ok := config["process"].(map[string]any); ok {
		process = member
	}
	sets, _ := process["capabilities"].(map[string]any)
	for name, set := range sets {
		list, _ := set.([]any)
		sets[name] = slices.DeleteFunc(list, func(capability any) bool {
			text, _ := capability.(string)
			return !have[text]
		})
	}
	return json.Marshal(config)
}
