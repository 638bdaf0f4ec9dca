package env

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// engineGrace is how long the Docker engine may take to end; it unmounts.
const engineGrace = 20 * time.Second

// down ends all that was started in the state folder and removes it. The data
// is thrown away, so only the Docker engine is asked to end in order.
func down(ctx context.Context, opts Options) error {
	p := processes{stateDir: opts.StateDir}
	if !isDir(opts.StateDir) {
		return p.endMarked()
	}
	var errs []error
	e, err := load(opts)
	if err != nil {
		// Cut off before the first write: there can be nothing but processes.
		e = nil
	}
	all, err := p.list()
	if err != nil {
		return err
	}
	// Before the engine: agents must not see their API server go and come back,
	// and nobody should create more containers.
	var others []process
	for _, one := range all {
		if one.Name != "dockerd" {
			others = append(others, one)
		}
	}
	errs = append(errs, endAll(others))
	if e != nil && e.DockerHost != "" {
		errs = append(errs, e.cleanEngine(ctx))
	}
	if p.alive("dockerd") {
		errs = append(errs, p.stop("dockerd", engineGrace))
	}
	// Children of the engine, and what a crash kept from being recorded.
	errs = append(errs, p.endMarked())
	errs = append(errs, unmountBelow(opts.StateDir))
	if e != nil && e.PrivateEngine {
		errs = append(errs, deleteBridge(ctx, bridgeName(e.ID)))
	}
	if e != nil && e.MadePluginDir {
		removePluginDir()
	}
	if err := errors.Join(errs...); err != nil {
		return err // the records stay, for another try
	}
	return os.RemoveAll(opts.StateDir)
}

func (e *Env) cleanEngine(ctx context.Context) error {
	if e.PrivateEngine && !e.processes().alive("dockerd") {
		return nil // its containers died with it or are found by the marker
	}
	engine, err := openEngine(e.DockerHost, e.PrivateEngine)
	if err != nil {
		return err
	}
	defer engine.close()
	if err := engine.answers(ctx); err != nil {
		return fmt.Errorf("the Docker engine at %s, which holds containers of the environment, does not answer: %w", e.DockerHost, err)
	}
	return engine.clean(ctx, e.Network, e.ID)
}

// deleteBridge removes the network interface that an engine that was killed left.
func deleteBridge(ctx context.Context, name string) error {
	if _, err := net.InterfaceByName(name); err != nil {
		return nil
	}
	if out, err := exec.CommandContext(ctx, "ip", "link", "delete", name).CombinedOutput(); err != nil {
		return fmt.Errorf("delete the bridge %s: %w: %s", name, err, bytes.TrimSpace(out))
	}
	return nil
}

// removePluginDir removes the one folder that an engine makes outside the state
// folder, if it is empty. Engines look for plugins in it, and do without it.
func removePluginDir() {
	for _, dir := range []string{filepath.Join(pluginDir, "plugins"), pluginDir} {
		_ = os.Remove(dir) // refused by the kernel when it is not empty
	}
}

// endMarked kills every program with the marker, and what those have started since
// they were looked for.
func (p processes) endMarked() error {
	for range 5 {
		left := p.marked()
		if len(left) == 0 {
			break
		}
		if err := endAll(left); err != nil {
			return err
		}
	}
	return nil
}

// endAll kills programs whose state is of no more use, all at once.
func endAll(all []process) error {
	errs := make([]error, len(all))
	var group sync.WaitGroup
	for i, one := range all {
		group.Go(func() { errs[i] = one.end(0) })
	}
	group.Wait()
	return errors.Join(errs...)
}

// unmountBelow undoes what an engine that was killed left mounted below dir,
// the innermost first.
func unmountBelow(dir string) error {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	var errs []error
	points := mountsBelow(string(mounts), dir)
	for i := len(points) - 1; i >= 0; i-- {
		if err := syscall.Unmount(points[i], syscall.MNT_DETACH); err != nil && !errors.Is(err, syscall.EINVAL) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", points[i], err))
		}
	}
	return errors.Join(errs...)
}

// mountsBelow returns the mount points below dir in the order of mounting.
func mountsBelow(mounts, dir string) []string {
	var points []string
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\134`, `\`)
	for line := range strings.Lines(mounts) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		if point := unescape.Replace(fields[1]); strings.HasPrefix(point, dir+"/") {
			points = append(points, point)
		}
	}
	return points
}
