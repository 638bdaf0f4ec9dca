package env

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
)

const (
	// kubernetesVersion is what the control plane and the nodes report. k3s
	// adds its own suffix to the version of Kubernetes, and `image: auto`
	// derives the agent's tag from it.
	kubernetesVersion = "v1.34.4+k3s1"

	// marker is set in the environment of everything that is started, children
	// of the engine included, so that a crashed run can be found and ended.
	marker = "K3S_AUTOSCALER_TESTENV"

	// label is on every container, image and network that the environment
	// itself makes; its value is the environment's id. Containers inherit it
	// from the stand-in's image.
	label = "dev.k3s-autoscaler.testenv"

	// serverLabel is on the container of a real k3s server.
	serverLabel = label + ".server"

	// realK3sVariable asks for the true rancher/k3s instead of the stand-in.
	realK3sVariable = "K3S_AUTOSCALER_E2E_K3S"

	// maxStateDir keeps the unix sockets below the state folder shorter than
	// the kernel's 108 bytes.
	maxStateDir = 64
)

// Options say where and how the environment runs. The zero value is usable.
type Options struct {
	// StateDir holds everything of one running environment: data, logs,
	// certificates, pids. Default $K3S_AUTOSCALER_TESTENV_DIR, else
	// k3s-autoscaler-testenv-<uid> in the folder for temporary files. At most
	// 64 bytes long.
	StateDir string

	// CacheDir holds the binaries. Default
	// ${XDG_CACHE_HOME:-~/.cache}/k3s-autoscaler/testenv.
	CacheDir string

	// RepositoryDir is the root of this repository. Default: found upwards
	// from the working directory.
	RepositoryDir string

	// NodeGrace is how long a silent node stays Ready
	// (--node-monitor-grace-period). Default 20 s; Kubernetes' own is 50 s. It
	// must exceed the kubelet's 10 s between renewals of its lease.
	NodeGrace time.Duration

	// RealK3s runs the true rancher/k3s, server and agents, instead of the
	// parts built here. Default: whether $K3S_AUTOSCALER_E2E_K3S is "1".
	RealK3s bool

	// Keep leaves the environment up when its last user releases it, until Stop.
	Keep bool

	// Log receives one line for each thing done, with its duration. Default
	// standard error.
	Log io.Writer
}

func (o Options) withDefaults() (Options, error) {
	if runtime.GOOS != "linux" {
		return o, fmt.Errorf("the test environment runs on Linux only, not on %s: run it in a virtual machine", runtime.GOOS)
	}
	if o.StateDir == "" {
		o.StateDir = os.Getenv("K3S_AUTOSCALER_TESTENV_DIR")
	}
	if o.StateDir == "" {
		o.StateDir = filepath.Join(os.TempDir(), "k3s-autoscaler-testenv-"+strconv.Itoa(os.Getuid()))
	}
	var err error
	if o.StateDir, err = filepath.Abs(o.StateDir); err != nil {
		return o, err
	}
	if len(o.StateDir) > maxStateDir {
		return o, fmt.Errorf("state folder %s is longer than %d bytes, so the sockets below it would be too long for the kernel: choose a shorter one", o.StateDir, maxStateDir)
	}
	if o.CacheDir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return o, fmt.Errorf("find the cache folder: %w", err)
		}
		o.CacheDir = filepath.Join(cache, "k3s-autoscaler", "testenv")
	}
	if o.RepositoryDir == "" {
		if o.RepositoryDir, err = findRepository(); err != nil {
			return o, err
		}
	}
	if o.NodeGrace == 0 {
		o.NodeGrace = 20 * time.Second
	}
	o.RealK3s = o.RealK3s || os.Getenv(realK3sVariable) == "1"
	if o.Log == nil {
		o.Log = os.Stderr
	}
	return o, nil
}

// The locks lie in the cache, since Stop removes the state folder.
func (o Options) stateLockFile() string { return o.lockPrefix() + ".lock" }
func (o Options) usersFile() string     { return o.lockPrefix() + ".users" }

func (o Options) lockPrefix() string {
	sum := sha256.Sum256([]byte(o.StateDir))
	return filepath.Join(o.CacheDir, "state-"+hex.EncodeToString(sum[:8]))
}

// findRepository walks up to the go.mod of the main module; the nested modules
// of the environment have their own, which are passed by.
func findRepository() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		content, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.HasPrefix(string(content), "module github.com/k3s-autoscaler/k3s-autoscaler\n") {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("not inside the k3s-autoscaler repository: run from it, or name it in Options.RepositoryDir")
		}
		dir = parent
	}
}

// step logs what is being done and returns what logs its end.
func step(log io.Writer, format string, args ...any) (done func()) {
	what := fmt.Sprintf(format, args...)
	started := time.Now()
	return func() {
		fmt.Fprintf(log, "testenv: %s (%.1f s)\n", what, time.Since(started).Seconds())
	}
}
