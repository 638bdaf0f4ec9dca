package docker

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/provider"
)

// Labels of our containers. A container with LabelCluster of this cluster is
// ours; every other is not touched.
const (
	labelPrefix = "k3s-autoscaler.dev/"

	LabelCluster = labelPrefix + "cluster"
	LabelPool    = labelPrefix + "pool"
	LabelClaim   = labelPrefix + "claim"
	LabelEpoch   = labelPrefix + "epoch"
	// LabelCPU and LabelMemory are what the machine takes of its host, in
	// thousandths of a core and bytes, so that a list of containers tells how much
	// room there is.
	LabelCPU    = labelPrefix + "cpu-milli"
	LabelMemory = labelPrefix + "memory-bytes"
)

// rendered is a container as the engine wants it.
type rendered struct {
	Config     *container.Config
	HostConfig *container.HostConfig
	Network    *network.NetworkingConfig
}

// render describes the container of a machine: what k3d gives its agents, and
// limits, and the token as a file.
func (o Options) render(s provider.Spec, image string, host capacity) (rendered, error) {
	reserved, err := host.reserved(s)
	if err != nil {
		return rendered{}, err
	}
	nanoCPUs, memory, err := host.limits(o.Limits, s)
	if err != nil {
		return rendered{}, err
	}
	gpus, err := parseGPUs(o.GPUs)
	if err != nil {
		return rendered{}, fmt.Errorf("%w: %w", provider.ErrRefused, err)
	}
	labels := maps.Clone(o.ContainerLabels)
	if labels == nil {
		labels = map[string]string{}
	}
	labels[LabelCluster], labels[LabelPool] = s.Cluster, s.Pool
	labels[LabelClaim], labels[LabelEpoch] = s.ClaimID, s.Epoch
	takes := host.need(o.Limits, s)
	labels[LabelCPU], labels[LabelMemory] = strconv.FormatInt(takes.cpuMilli, 10), strconv.FormatInt(takes.memoryBytes, 10)

	init := true
	return rendered{
		Config: &container.Config{
			Hostname: s.Name,
			Image:    image,
			Cmd:      o.command(s, reserved),
			Env:      o.environment(),
			Labels:   labels,
		},
		HostConfig: &container.HostConfig{
			NetworkMode: container.NetworkMode(o.Network),
			Binds:       o.Mounts,
			Privileged:  true,
			// A privileged container can't be in a remapped user namespace.
			UsernsMode: "host",
			Init:       &init, // reaps what the agent's children leave
			Tmpfs:      map[string]string{"/run": "", "/var/run": ""},
			// A claim is one run. The engine must not start a machine again, nor after
			// a reboot of the host: then it stays exited, and is replaced under a new
			// claim.
			RestartPolicy: container.RestartPolicy{Name: container.RestartPolicyDisabled},
			Resources: container.Resources{
				NanoCPUs:   nanoCPUs,
				Memory:     memory,
				MemorySwap: memory, // the same: no swap
				Ulimits:    o.ulimits(),

				DeviceRequests: gpus,
			},
		},
		Network: &network.NetworkingConfig{
			EndpointsConfig: map[string]*network.EndpointSettings{o.Network: {}},
		},
	}, nil
}

func (o Options) command(s provider.Spec, reserved string) []string {
	cmd := []string{"agent", "--node-name=" + s.Name}
	for _, key := range slices.Sorted(maps.Keys(s.Labels)) {
		cmd = append(cmd, "--node-label="+key+"="+s.Labels[key])
	}
	for _, t := range s.Taints {
		cmd = append(cmd, "--node-taint="+t.String())
	}
	cmd = append(cmd, "--kubelet-arg=system-reserved="+reserved)
	if s.MaxPods > 0 {
		cmd = append(cmd, "--kubelet-arg=max-pods="+strconv.FormatInt(s.MaxPods, 10))
	}
	return append(cmd, o.ExtraArgs...)
}

func (o Options) environment() []string {
	env := []string{"K3S_URL=" + o.ServerURL, "K3S_TOKEN_FILE=" + tokenPath}
	for _, key := range slices.Sorted(maps.Keys(o.Env)) {
		env = append(env, key+"="+o.Env[key])
	}
	return env
}

func (o Options) ulimits() []*container.Ulimit {
	var limits []*container.Ulimit
	for _, u := range o.Ulimits {
		limits = append(limits, &container.Ulimit{Name: u.Name, Soft: u.Soft, Hard: u.Hard})
	}
	return limits
}

// parseGPUs makes the device request of docker run --gpus.
func parseGPUs(s string) ([]container.DeviceRequest, error) {
	if s == "" {
		return nil, nil
	}
	r := container.DeviceRequest{Capabilities: [][]string{{"gpu"}}}
	ids, byID := strings.CutPrefix(s, "device=")
	n, err := strconv.Atoi(s)
	switch {
	case s == "all":
		r.Count = -1
	case byID:
		if r.DeviceIDs = strings.Split(ids, ","); slices.Contains(r.DeviceIDs, "") {
			return nil, fmt.Errorf("gpus: is %q, expected device= and ids with commas between them", s)
		}
	case err == nil && n > 0:
		r.Count = n
	default:
		return nil, fmt.Errorf("gpus: is %q, expected all, a number above 0, or device=ID,ID", s)
	}
	return []container.DeviceRequest{r}, nil
}
