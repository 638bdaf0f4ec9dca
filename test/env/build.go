package env

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// Binaries are the paths of what Build made, by program name:
// kube-apiserver, kube-controller-manager, kube-scheduler, k3s (the agent
// stand-in), etcd, toxiproxy-server, runcshim.
type Binaries map[string]string

// keepUnused is how long binaries stay in the cache after their last use.
const keepUnused = 30 * 24 * time.Hour

// program is one binary and the package that it is built from.
type program struct{ name, pkg string }

// buildSet is what is built, keyed and cached together.
type buildSet struct {
	name     string
	module   string   // folder of its module, below test/env
	sources  []string // files and folders below module whose content is part of the key
	ldflags  string
	programs []program
	estimate string // of a build with nothing cached, on two cores
}

func buildSets() []buildSet {
	const base = "k8s.io/component-base/version."
	// Without a version clients cannot parse what the server reports.
	stamp := "-s -w" +
		" -X " + base + "gitVersion=" + kubernetesVersion +
		" -X " + base + "gitMajor=1 -X " + base + "gitMinor=34" +
		" -X " + base + "gitTreeState=clean -X " + base + "buildDate=2026-01-01T00:00:00Z"
	return []buildSet{
		{
			name: "controlplane", module: "k8s", sources: []string{"go.mod", "go.sum"}, ldflags: stamp, estimate: "6 minutes",
			programs: []program{
				{"kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"},
				{"kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager"},
				{"kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"},
			},
		},
		{
			name: "agent", module: "k8s", sources: []string{"go.mod", "go.sum", "agent"}, ldflags: stamp, estimate: "1 minute",
			programs: []program{{"k3s", "./agent"}},
		},
		{
			name: "tools", module: "tools", sources: []string{"go.mod", "go.sum"}, ldflags: "-s -w", estimate: "2 minutes",
			programs: []program{
				{"etcd", "go.etcd.io/etcd/server/v3"},
				{"toxiproxy-server", "github.com/Shopify/toxiproxy/v2/cmd/server"},
			},
		},
		{
			name: "runcshim", module: "runcshim", sources: []string{"."}, ldflags: "-s -w", estimate: "seconds",
			programs: []program{{"runcshim", "."}},
		},
	}
}

// Build makes the binaries, or finds them in the cache. A second caller waits
// for the first one's build. For a real k3s only runcshim is made. With nothing cached it takes about ten minutes on
// two cores.
func Build(ctx context.Context, opts Options) (Binaries, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	toolchain, err := toolchainVersion(ctx)
	if err != nil {
		return nil, err
	}
	binaries := Binaries{}
	for _, set := range buildSets() {
		if opts.RealK3s && set.name != "runcshim" {
			continue // k3s brings the rest
		}
		dir, err := set.build(ctx, opts, toolchain)
		if err != nil {
			return nil, fmt.Errorf("build %s: %w", set.name, err)
		}
		for _, p := range set.programs {
			binaries[p.name] = filepath.Join(dir, p.name)
		}
	}
	return binaries, nil
}

// build returns the folder with the set's binaries. The folder's name carries
// the key, it appears under that name only when complete, and it is never
// changed after.
func (s buildSet) build(ctx context.Context, opts Options, toolchain string) (string, error) {
	moduleDir := filepath.Join(opts.RepositoryDir, "test", "env", s.module)
	key, err := s.key(os.DirFS(moduleDir), toolchain)
	if err != nil {
		return "", err
	}
	dir := filepath.Join(opts.CacheDir, s.name+"-"+key)
	if isDir(dir) {
		now := time.Now()
		return dir, os.Chtimes(dir, now, now) // it is in use: see prune
	}
	if err := os.MkdirAll(opts.CacheDir, 0o755); err != nil {
		return "", err
	}
	unlock, err := lockFile(ctx, filepath.Join(opts.CacheDir, s.name+".lock"), func() {
		fmt.Fprintf(opts.Log, "testenv: waiting for another process that builds %s\n", s.name)
	})
	if err != nil {
		return "", err
	}
	defer unlock()
	if isDir(dir) {
		return dir, nil
	}
	fmt.Fprintf(opts.Log, "testenv: building %s (%s if nothing is cached)\n", s.names(), s.estimate)
	done := step(opts.Log, "built %s", s.names())
	temporary, err := os.MkdirTemp(opts.CacheDir, s.name+".building-")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(temporary) }()
	for _, p := range s.programs {
		if err := goBuild(ctx, moduleDir, filepath.Join(temporary, p.name), p.pkg, s.ldflags); err != nil {
			return "", fmt.Errorf("%s: %w", p.name, err)
		}
	}
	if err := os.Chmod(temporary, 0o755); err != nil { //nolint:gosec // binaries are no secret
		return "", err
	}
	if err := os.Rename(temporary, dir); err != nil {
		return "", err
	}
	done()
	return dir, s.prune(opts.CacheDir)
}

// prune removes builds of the set, whole or broken off, that nobody has used for
// keepUnused.
func (s buildSet) prune(cacheDir string) error {
	entries, err := os.ReadDir(cacheDir)
	if err != nil {
		return err
	}
	var errs []error
	for _, entry := range entries {
		own := strings.HasPrefix(entry.Name(), s.name+"-") || strings.HasPrefix(entry.Name(), s.name+".building-")
		info, err := entry.Info()
		if err != nil || !own || !entry.IsDir() || time.Since(info.ModTime()) < keepUnused {
			continue
		}
		errs = append(errs, os.RemoveAll(filepath.Join(cacheDir, entry.Name())))
	}
	return errors.Join(errs...)
}

// key is a digest of all that decides what the binaries are.
func (s buildSet) key(module fs.FS, toolchain string) (string, error) {
	digest := sha256.New()
	fmt.Fprintf(digest, "%s\n%s/%s\n%s\n%q\n", toolchain, runtime.GOOS, runtime.GOARCH, s.ldflags, s.programs)
	var files []string
	for _, source := range s.sources {
		err := fs.WalkDir(module, source, func(path string, entry fs.DirEntry, err error) error {
			if err != nil {
				if errors.Is(err, fs.ErrNotExist) && path == "go.sum" {
					return nil // a module without requirements has none
				}
				return err
			}
			if !entry.IsDir() && !strings.HasSuffix(path, "_test.go") {
				files = append(files, path)
			}
			return nil
		})
		if err != nil {
			return "", err
		}
	}
	slices.Sort(files)
	for _, file := range files {
		content, err := fs.ReadFile(module, file)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(digest, "%s %d\n", file, len(content))
		digest.Write(content)
	}
	return hex.EncodeToString(digest.Sum(nil))[:16], nil
}

func (s buildSet) names() string {
	var names []string
	for _, p := range s.programs {
		names = append(names, p.name)
	}
	return strings.Join(names, ", ")
}

func goBuild(ctx context.Context, dir, output, pkg, ldflags string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-mod=readonly", "-buildvcs=false", "-ldflags", ldflags, "-o", output, pkg)
	cmd.Dir = dir
	// Static binaries: the agent's image holds nothing else.
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=")
	cmd.WaitDelay = time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s: %w\n%s", pkg, err, tail(out, 4096))
	}
	return nil
}

func toolchainVersion(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOVERSION").Output()
	if err != nil {
		return "", fmt.Errorf("ask for the version of Go (is it in PATH?): %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// tail returns the last max bytes, where a build or a program says what is wrong.
func tail(out []byte, max int) []byte {
	if len(out) > max {
		return out[len(out)-max:]
	}
	return out
}
