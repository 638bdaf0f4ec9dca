package docker

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/docker/client"
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/utils/clock"
)

const (
	// ImageAuto is the image that follows the server's version.
	ImageAuto = "auto"
	// DefaultRepository is where ImageAuto looks.
	DefaultRepository = "rancher/k3s"
	// DefaultNetwork is the engine's own bridge.
	DefaultNetwork = "bridge"
	// DefaultStopGrace is Docker's own default of the time from SIGTERM to
	// SIGKILL.
	DefaultStopGrace = 10 * time.Second
	// DefaultCallTimeout bounds one call to the engine, pulls excepted.
	DefaultCallTimeout = 30 * time.Second
	// DefaultPullTimeout bounds the pull of an image: 80 MB over a slow line.
	DefaultPullTimeout = 5 * time.Minute
	// AgentMemoryBytes is what the agent itself may take beyond the memory that
	// its node offers to pods: the minimum that the k3s documentation asks for an
	// agent; its resource profile measures 275 MB.
	AgentMemoryBytes = 512 << 20
)

// Unlimited is the Limits value for "no limit".
const Unlimited = -1

// Limits are the container's own limits, above what the node offers to pods.
type Limits struct {
	// CPUMilli is in thousandths of a core; 0 is the Spec's, Unlimited is none.
	CPUMilli int64
	// MemoryBytes is in bytes; 0 is the Spec's and AgentMemoryBytes, but never
	// more than the host has; Unlimited is none. There is no swap beyond it.
	MemoryBytes int64
}

// Ulimit is a resource limit of the container's processes.
type Ulimit struct {
	Name       string // as in docker run --ulimit, e.g. "nofile"
	Soft, Hard int64
}

// TLS names the files for an engine behind tcp://. Without CAFile the system's
// authorities are trusted; CertFile and KeyFile come together.
type TLS struct{ CAFile, CertFile, KeyFile string }

// Pull says when an image is pulled.
type Pull string

// Values of Pull.
const (
	PullMissing Pull = "missing" // when the host lacks it
	PullAlways  Pull = "always"  // for each machine
	PullNever   Pull = "never"   // the operator loads it
)

// Host is one Docker engine.
type Host struct {
	// Name is what records and metrics call it. With one host it may be empty:
	// then it is what the engine calls its machine.
	Name string
	// Address is the engine's, e.g. unix:///var/run/docker.sock,
	// tcp://10.0.0.7:2376 or ssh://user@10.0.0.7.
	Address string
	TLS     TLS // for tcp://
	SSH     SSH // for ssh://
	// MaxNodes of the pool on this host; 0: as many as there is room for.
	MaxNodes int
	// MaxParallel is how many machines are created or started at a time, by all
	// pools together. Default DefaultParallel.
	MaxParallel int
	// CPUMilli and MemoryBytes are what our machines may have of the host
	// together. 0: what the engine says that its host has.
	CPUMilli, MemoryBytes int64
}

// DefaultParallel is how many machines a host is busy with at a time.
const DefaultParallel = 3

// Placement is how a host is chosen among those that have room.
type Placement string

// Values of Placement.
const (
	Spread Placement = "spread" // the one with the fewest nodes of the pool
	Pack   Placement = "pack"   // the one that is used most
)

// Options of a Provider: one pool's engines, one cluster. Cluster, ServerURL and
// TokenFile are required.
type Options struct {
	Cluster string
	// ServerURL is where agents reach the server, e.g. https://10.0.0.5:6443.
	ServerURL string
	// TokenFile holds the join token. It is read for each machine, so that a
	// rotated token needs no restart.
	TokenFile string

	// Hosts that machines are made on. Default: the one of the environment
	// variable DOCKER_HOST, or the local socket.
	Hosts []Host
	// Placement chooses among them. Default Spread.
	Placement Placement
	// FormerPools are names under which machines were made that count with those
	// of the pool now.
	FormerPools []string
	// Engines are shared by the providers of a process, so that they see each
	// other's machines before the engine shows them, and share limits and circuit
	// breakers. Default: its own.
	Engines *Engines

	// Image is a reference with a k3s version for its tag, or ImageAuto, which is
	// the default.
	Image string
	// Repository is where ImageAuto looks, e.g. a mirror. Default
	// DefaultRepository.
	Repository string
	// AllowUnversionedImage accepts an Image whose tag is not a k3s version, so
	// that nobody checks that the agent is not newer than the server.
	AllowUnversionedImage bool
	Pull                  Pull // default PullMissing

	// Network that the container joins: a name, or "host". Default
	// DefaultNetwork.
	Network string
	// ExtraArgs are appended to `k3s agent`. What the provider sets itself is
	// refused.
	ExtraArgs []string
	// Env is added to the container's environment, which whoever may inspect the
	// container can read.
	Env map[string]string
	// Mounts are bind mounts as Docker writes them, /host/path:/path[:ro].
	Mounts []string
	// RegistriesFile is a registries.yaml of this process's machine. Its content is
	// put into each container: nothing of it need be on the engine's host.
	RegistriesFile string
	// GPUs that a container gets, as docker run --gpus takes them: "all", a number,
	// or device=ID,ID. Empty: none.
	GPUs string
	// ContainerLabels are put on the container beside our own.
	ContainerLabels map[string]string
	// Ulimits of the container. Default: the engine's.
	Ulimits []Ulimit
	Limits  Limits

	StopGrace   time.Duration // default DefaultStopGrace
	CallTimeout time.Duration // default DefaultCallTimeout
	PullTimeout time.Duration // default DefaultPullTimeout

	Logger     *slog.Logger          // default: discarded
	Registerer prometheus.Registerer // default: no metrics
	Clock      clock.Clock           // default: the real one
}

var (
	clusterName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

	engineSchemes = []string{"unix", "tcp", "ssh", "http", "https", "npipe"}

	// ownFlags are set by the provider: a second value would contradict what it
	// has promised to its caller.
	ownFlags = []string{"--server", "-s", "--token", "-t", "--token-file", "--node-name", "--with-node-id", "--config", "-c"}
	ownEnv   = []string{"K3S_URL", "K3S_TOKEN", "K3S_TOKEN_FILE", "K3S_NODE_NAME"}
	ownPaths = []string{"/run", "/var/run", path.Dir(tokenPath)}
	// ownKubeletArgs decide what is allocatable.
	ownKubeletArgs = []string{"system-reserved", "kube-reserved", "max-pods", "hostname-override"}
)

// withDefaults returns o with every documented default filled in.
func (o Options) withDefaults() Options {
	if len(o.Hosts) == 0 {
		o.Hosts = []Host{{}}
	}
	o.Hosts = slices.Clone(o.Hosts)
	for i := range o.Hosts {
		h := &o.Hosts[i]
		if len(o.Hosts) == 1 {
			setDefault(&h.Address, os.Getenv(client.EnvOverrideHost))
			setDefault(&h.Address, client.DefaultDockerHost)
		}
		setDefault(&h.MaxParallel, DefaultParallel)
	}
	setDefault(&o.Placement, Spread)
	if o.Engines == nil {
		o.Engines = NewEngines()
	}
	setDefault(&o.Image, ImageAuto)
	setDefault(&o.Repository, DefaultRepository)
	setDefault(&o.Pull, PullMissing)
	setDefault(&o.Network, DefaultNetwork)
	setDefault(&o.StopGrace, DefaultStopGrace)
	setDefault(&o.CallTimeout, DefaultCallTimeout)
	setDefault(&o.PullTimeout, DefaultPullTimeout)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	return o
}

func setDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// Validate says everything that is wrong with o, joined. It looks at no file
// but TokenFile and the TLS files, and calls no engine.
func (o Options) Validate() error {
	o = o.withDefaults()
	var errs []error
	wrong := func(field, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %s", field, fmt.Sprintf(format, args...)))
	}
	if !clusterName.MatchString(o.Cluster) {
		wrong("cluster", "is %q, expected a DNS label", o.Cluster)
	}
	if u, err := url.Parse(o.ServerURL); err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil {
		wrong("server URL", "is %q, expected e.g. https://10.0.0.5:6443", o.ServerURL)
	}
	if _, err := readToken(o.TokenFile); err != nil {
		errs = append(errs, err)
	}
	errs = append(errs, o.validateHosts())
	if !slices.Contains([]Placement{Spread, Pack}, o.Placement) {
		wrong("placement", "is %q, expected %s or %s", o.Placement, Spread, Pack)
	}
	if !slices.Contains([]Pull{PullMissing, PullAlways, PullNever}, o.Pull) {
		wrong("pull", "is %q, expected %s, %s or %s", o.Pull, PullMissing, PullAlways, PullNever)
	}
	errs = append(errs, o.validateImage(), o.validateContainer())
	for _, n := range []struct {
		name  string
		value int64
	}{{"limits: cpu", o.Limits.CPUMilli}, {"limits: memory", o.Limits.MemoryBytes}} {
		if n.value < Unlimited {
			wrong(n.name, "is %d, expected 0 (follow the pool), more, or %d (none)", n.value, Unlimited)
		}
	}
	for _, d := range []struct {
		name  string
		value time.Duration
	}{{"stop grace", o.StopGrace}, {"call timeout", o.CallTimeout}, {"pull timeout", o.PullTimeout}} {
		if d.value < time.Second {
			wrong(d.name, "is %s, expected at least 1s", d.value)
		}
	}
	return errors.Join(errs...)
}

// validateHosts looks at the hosts and the files that reach them.
func (o Options) validateHosts() error {
	var errs []error
	seen := map[string]bool{}
	for i, h := range o.Hosts {
		wrong := func(format string, args ...any) {
			errs = append(errs, fmt.Errorf("host %s: %s", cmp.Or(h.Name, h.Address, strconv.Itoa(i)), fmt.Sprintf(format, args...)))
		}
		u, err := url.Parse(h.Address)
		switch {
		case err != nil || !slices.Contains(engineSchemes, u.Scheme):
			wrong("address is %q, expected one with one of the schemes %v", h.Address, engineSchemes)
		case u.Scheme == "ssh" && (u.User.Username() == "" || u.Hostname() == ""):
			wrong("address is %q, expected ssh://user@host", h.Address)
		case u.Scheme == "ssh":
			if err := h.SSH.validate(); err != nil {
				wrong("%v", err)
			}
		case h.SSH != SSH{}:
			wrong("has settings of SSH, but its address does not begin with ssh://")
		}
		if err := h.TLS.validate(); err != nil {
			wrong("%v", err)
		}
		if h.Name == "" && len(o.Hosts) > 1 {
			wrong("has no name, expected one for each of several hosts")
		}
		for _, one := range []string{h.Name, h.Address} {
			if one != "" && seen[one] {
				wrong("%q stands here twice, expected a name and an engine of its own for each host", one)
			}
			seen[one] = true
		}
		for _, n := range []struct {
			name  string
			value int64
		}{{"max nodes", int64(h.MaxNodes)}, {"max parallel", int64(h.MaxParallel)}, {"cpu", h.CPUMilli}, {"memory", h.MemoryBytes}} {
			if n.value < 0 {
				wrong("%s is %d, expected 0 or more", n.name, n.value)
			}
		}
	}
	return errors.Join(errs...)
}

// validateContainer looks at what users add to the container.
func (o Options) validateContainer() error {
	var errs []error
	wrong := func(field, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %s", field, fmt.Sprintf(format, args...)))
	}
	for key := range o.ContainerLabels {
		if key == "" || strings.HasPrefix(key, labelPrefix) {
			wrong("container labels", "%q is not allowed: it is empty or begins with %s", key, labelPrefix)
		}
	}
	for _, u := range o.Ulimits {
		if u.Name == "" || u.Hard != -1 && u.Soft > u.Hard {
			wrong("ulimits", "%q has soft %d and hard %d, expected a name and soft not above hard", u.Name, u.Soft, u.Hard)
		}
	}
	for key := range o.Env {
		if key == "" || strings.ContainsAny(key, "=\x00") || slices.Contains(ownEnv, key) {
			wrong("env", "%q is not allowed: it is no name, or set by the provider", key)
		}
	}
	for _, m := range o.Mounts {
		parts := strings.Split(m, ":")
		if len(parts) < 2 || len(parts) > 3 || !path.IsAbs(parts[0]) || !path.IsAbs(parts[1]) {
			wrong("mounts", "is %q, expected /host/path:/path or /host/path:/path:ro", m)
			continue
		}
		for _, own := range ownPaths {
			if at := path.Clean(parts[1]); at == "/" || at == own || strings.HasPrefix(at, own+"/") {
				wrong("mounts", "%q is not allowed: the provider has %s for itself", m, own)
			}
		}
	}
	if o.RegistriesFile != "" {
		for _, m := range o.Mounts {
			if parts := strings.Split(m, ":"); len(parts) > 1 && path.Clean(parts[1]) == registriesPath {
				wrong("mounts", "%q and the registries file both want to be %s, expected one of them", m, registriesPath)
			}
		}
	}
	_, registriesErr := readRegistries(o.RegistriesFile)
	_, gpusErr := parseGPUs(o.GPUs)
	return errors.Join(append(errs, registriesErr, gpusErr, validateArgs(o.ExtraArgs))...)
}

func (t TLS) validate() error {
	var errs []error
	for _, f := range []string{t.CAFile, t.CertFile, t.KeyFile} {
		if f == "" {
			continue
		}
		if _, err := os.Stat(f); err != nil {
			errs = append(errs, fmt.Errorf("tls: %w", err))
		}
	}
	if (t.CertFile == "") != (t.KeyFile == "") {
		errs = append(errs, errors.New("tls: expected both a certificate and its key, or neither"))
	}
	return errors.Join(errs...)
}

// validateArgs refuses arguments that would override what the provider sets.
func validateArgs(args []string) error {
	var errs []error
	kubelet := false
	for _, arg := range args {
		name, value, joined := strings.Cut(arg, "=")
		if slices.Contains(ownFlags, name) {
			errs = append(errs, fmt.Errorf("extra args: %s is set by the provider", name))
		}
		switch {
		case kubelet:
			errs = append(errs, validateKubeletArg(arg))
		case name == "--kubelet-arg" && joined:
			errs = append(errs, validateKubeletArg(value))
		}
		kubelet = !kubelet && arg == "--kubelet-arg"
	}
	return errors.Join(errs...)
}

func validateKubeletArg(arg string) error {
	key, value, _ := strings.Cut(strings.TrimLeft(arg, "-"), "=")
	key = strings.TrimRight(key, "+-")
	switch {
	case slices.Contains(ownKubeletArgs, key):
		return fmt.Errorf("extra args: --kubelet-arg=%s is set by the provider: the node's allocatable follows the pool", key)
	case key == "eviction-hard" && strings.Contains(value, "memory.available"):
		return errors.New("extra args: --kubelet-arg=eviction-hard with memory.available would make the node's allocatable smaller than the pool says")
	}
	return nil
}
