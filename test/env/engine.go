package env

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/client"
)

const (
	defaultDockerHost = "unix:///var/run/docker.sock"

	// pluginDir is made by every engine, whatever folders it is given.
	pluginDir = "/run/docker"

	// parallelRemovals is how many containers are removed at once; the engine
	// waits for most of each removal.
	parallelRemovals = 8
)

// engine is a Docker engine: one that answered, or one that was started for
// this environment alone.
type engine struct {
	host    string
	private bool
	client  *client.Client
}

func openEngine(host string, private bool) (*engine, error) {
	c, err := client.NewClientWithOpts(client.WithHost(host), client.WithAPIVersionNegotiation())
	if err != nil {
		return nil, fmt.Errorf("open the Docker engine at %s: %w", host, err)
	}
	return &engine{host: host, private: private, client: c}, nil
}

func (e *engine) close() { _ = e.client.Close() }

func (e *engine) answers(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, err := e.client.Ping(ctx)
	return err
}

// existingEngine returns the engine at DOCKER_HOST or at Docker's default
// socket, or an error that says why there is none that can be used.
func existingEngine(ctx context.Context) (*engine, error) {
	host := os.Getenv("DOCKER_HOST")
	if host == "" {
		host = defaultDockerHost
	}
	e, err := openEngine(host, false)
	if err != nil {
		return nil, err
	}
	if err := e.answers(ctx); err != nil {
		e.close()
		return nil, fmt.Errorf("no Docker engine answers at %s: %w", host, err)
	}
	return e, nil
}

// startEngine runs a Docker engine whose data, sockets and runtime state lie in
// the state folder. reachable gives containers a way out of the bridge.
func startEngine(ctx context.Context, p processes, binaries Binaries, reachable bool, log io.Writer) (*engine, error) {
	if os.Getuid() != 0 {
		return nil, errors.New("a Docker engine can be started only by root: run as root, or start Docker and set DOCKER_HOST")
	}
	if err := ensurePackages(ctx, log, map[string]string{
		"dockerd": "docker.io", "runc": "runc", "iptables": "iptables", "docker-init": "tini", "ip": "iproute2",
	}); err != nil {
		return nil, fmt.Errorf("get a Docker engine: %w", err)
	}
	done := step(log, "private Docker engine is up")
	dir := filepath.Join(p.stateDir, "docker")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	// A file of its own, instead of the machine's /etc/docker/daemon.json.
	config := filepath.Join(dir, "daemon.json")
	if err := os.WriteFile(config, engineConfig(ctx, filepath.Join(dir, "key.json")), 0o600); err != nil {
		return nil, err
	}
	host := privateDockerHost(p.stateDir)
	args := []string{
		"--data-root=" + filepath.Join(dir, "data"), "--exec-root=" + filepath.Join(dir, "exec"),
		"--pidfile=" + filepath.Join(dir, "dockerd.pid"), "--config-file=" + config, "--host=" + host,
		"--bridge=none", "--userland-proxy=false", "--log-level=warn", "--shutdown-timeout=5",
	}
	if !reachable {
		// Containers need to reach the gateway only; the machine's packet
		// filter stays as it is.
		args = append(args, "--iptables=false", "--ip-masq=false", "--ip-forward=false")
	}
	missing, err := missingCapabilities()
	if err != nil {
		return nil, err
	}
	if missing {
		fmt.Fprintln(log, "testenv: this machine lacks capabilities; privileged containers get those that it has")
		args = append(args, "--add-runtime=shim="+binaries["runcshim"], "--default-runtime=shim")
	}
	if err := p.start("dockerd", "dockerd", args...); err != nil {
		return nil, err
	}
	e, err := openEngine(host, true)
	if err != nil {
		return nil, err
	}
	if err := p.waitFor(ctx, "dockerd", 60*time.Second, e.answers); err != nil {
		e.close()
		return nil, err
	}
	done()
	return e, nil
}

func privateDockerHost(stateDir string) string {
	return "unix://" + filepath.Join(stateDir, "docker", "docker.sock")
}

// engineConfig keeps the trust key of engines before 23.0 out of /etc/docker;
// later ones have none, and refuse the setting.
func engineConfig(ctx context.Context, keyFile string) []byte {
	out, err := exec.CommandContext(ctx, "dockerd", "--version").Output()
	if err != nil || engineMajor(string(out)) >= 23 {
		return []byte("{}\n")
	}
	return fmt.Appendf(nil, "{%q: %q}\n", "deprecated-key-path", keyFile)
}

// engineMajor reads the major version from `dockerd --version`. What cannot be
// read counts as new.
func engineMajor(output string) int {
	version, _ := strings.CutPrefix(output, "Docker version ")
	major, _, _ := strings.Cut(version, ".")
	n, err := strconv.Atoi(major)
	if err != nil {
		return math.MaxInt
	}
	return n
}

// missingCapabilities says whether this process could not give a container all
// capabilities that the kernel knows.
func missingCapabilities() (bool, error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return false, err
	}
	last, err := os.ReadFile("/proc/sys/kernel/cap_last_cap")
	if err != nil {
		return false, err
	}
	return lacksCapabilities(string(status), string(last))
}

func lacksCapabilities(status, lastCap string) (bool, error) {
	last, err := strconv.Atoi(strings.TrimSpace(lastCap))
	if err != nil {
		return false, fmt.Errorf("read the number of capabilities: %w", err)
	}
	all := uint64(1)<<(last+1) - 1
	for line := range strings.Lines(status) {
		if hex, ok := strings.CutPrefix(line, "CapBnd:"); ok {
			bounding, err := strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
			return bounding&all != all, err
		}
	}
	return false, errors.New("/proc/self/status has no CapBnd")
}

// tryPrivileged runs image once as the product would run an agent.
func (e *engine) tryPrivileged(ctx context.Context, image, id string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	yes := true
	created, err := e.client.ContainerCreate(ctx,
		&container.Config{Image: image, Cmd: []string{"--version"}, Labels: map[string]string{label: id}},
		&container.HostConfig{Privileged: true, Init: &yes, Tmpfs: map[string]string{"/run": ""}, NetworkMode: "none"},
		nil, nil, "")
	if err != nil {
		return err
	}
	defer func() {
		_ = e.client.ContainerRemove(context.WithoutCancel(ctx), created.ID, container.RemoveOptions{Force: true, RemoveVolumes: true})
	}()
	if err := e.client.ContainerStart(ctx, created.ID, container.StartOptions{}); err != nil {
		return err
	}
	ended, failed := e.client.ContainerWait(ctx, created.ID, container.WaitConditionNotRunning)
	select {
	case result := <-ended:
		if result.StatusCode != 0 {
			return fmt.Errorf("it ended with exit code %d", result.StatusCode)
		}
		return nil
	case err := <-failed:
		return err
	}
}

// createNetwork makes the bridge of the nodes on the first subnet that is free.
func (e *engine) createNetwork(ctx context.Context, name, id string) (gateway netip.Addr, subnet netip.Prefix, err error) {
	inUse, err := subnetsOfThisHost()
	if err != nil {
		return gateway, subnet, err
	}
	networks, err := e.client.NetworkList(ctx, network.ListOptions{})
	if err != nil {
		return gateway, subnet, fmt.Errorf("list networks: %w", err)
	}
	for _, n := range networks {
		for _, config := range n.IPAM.Config {
			if prefix, err := netip.ParsePrefix(config.Subnet); err == nil {
				inUse = append(inUse, prefix)
			}
		}
	}
	var lastErr error
	for _, subnet := range freeSubnets(inUse) {
		gateway := subnet.Addr().Next()
		_, lastErr = e.client.NetworkCreate(ctx, name, network.CreateOptions{
			Driver:  "bridge",
			Labels:  map[string]string{label: id},
			Options: map[string]string{"com.docker.network.bridge.name": bridgeName(id)},
			IPAM:    &network.IPAM{Config: []network.IPAMConfig{{Subnet: subnet.String(), Gateway: gateway.String()}}},
		})
		if lastErr == nil {
			return gateway, subnet, nil
		}
		if !strings.Contains(lastErr.Error(), "overlaps") { // with a route that is no interface's
			break
		}
	}
	return gateway, subnet, fmt.Errorf("create network %s: %w", name, lastErr)
}

// bridgeName is at most 15 bytes long, as the kernel demands.
func bridgeName(id string) string { return "k3sas-" + id }

// clean removes what the environment and its tests left in the engine: the
// containers on its network or with its label, with their volumes, then the
// network and the images. In a private engine all containers are meant.
func (e *engine) clean(ctx context.Context, networkName, id string) error {
	if err := e.removeContainers(ctx, networkName, id); err != nil {
		return err
	}
	if e.private {
		return e.removeNetworks(ctx, id) // the images go with the engine's data
	}
	return errors.Join(e.removeNetworks(ctx, id), e.removeImages(ctx, id))
}

func (e *engine) removeNetworks(ctx context.Context, id string) error {
	byLabel := filters.NewArgs(filters.Arg("label", label+"="+id))
	networks, err := e.client.NetworkList(ctx, network.ListOptions{Filters: byLabel})
	if err != nil {
		return fmt.Errorf("list networks: %w", err)
	}
	var errs []error
	for _, n := range networks {
		if err := e.client.NetworkRemove(ctx, n.ID); err != nil && !cerrdefs.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("remove network %s: %w", n.Name, err))
		}
	}
	return errors.Join(errs...)
}

func (e *engine) removeContainers(ctx context.Context, networkName, id string) error {
	if e.private {
		return e.removeWhere(ctx, filters.NewArgs(), "")
	}
	return errors.Join(
		e.removeWhere(ctx, filters.NewArgs(filters.Arg("network", networkName)), ""),
		e.removeWhere(ctx, filters.NewArgs(filters.Arg("label", label+"="+id)), ""))
}

// removeNodeContainers removes those that tests made on the network, and leaves
// the environment's own (a real k3s server).
func (e *engine) removeNodeContainers(ctx context.Context, networkName string) error {
	return e.removeWhere(ctx, filters.NewArgs(filters.Arg("network", networkName)), serverLabel)
}

// removeWhere removes containers with their anonymous volumes, but for those
// that carry the label keep.
func (e *engine) removeWhere(ctx context.Context, filter filters.Args, keep string) error {
	containers, err := e.client.ContainerList(ctx, container.ListOptions{All: true, Filters: filter})
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	errs := make([]error, len(containers))
	slots := make(chan struct{}, parallelRemovals)
	var group sync.WaitGroup
	for i, c := range containers {
		if _, kept := c.Labels[keep]; kept {
			continue
		}
		group.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			err := e.client.ContainerRemove(ctx, c.ID, container.RemoveOptions{Force: true, RemoveVolumes: true})
			if err != nil && !cerrdefs.IsNotFound(err) && !strings.Contains(err.Error(), "is already in progress") {
				errs[i] = fmt.Errorf("remove container %s: %w", strings.Join(c.Names, " "), err)
			}
		})
	}
	group.Wait()
	return errors.Join(errs...)
}
