package env

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/k3s-autoscaler/k3s-autoscaler/test/freeport"
)

// Env is a running environment. Its fields are paths, addresses and names for
// tests; they do not change while it runs.
type Env struct {
	// ID tells environments on one machine apart.
	ID       string `json:"id"`
	StateDir string `json:"state_dir"`

	// AdminKubeconfig may do all; it leads straight to the API server.
	AdminKubeconfig string `json:"admin_kubeconfig"`
	// ReaderKubeconfig and ActorKubeconfig have the rights that deploy/ gives
	// the product, to read and to act, and lead through the control door.
	ReaderKubeconfig string `json:"reader_kubeconfig"`
	ActorKubeconfig  string `json:"actor_kubeconfig"`

	// APIServerURL is reached from this machine, APIServerURLForNodes (K3S_URL)
	// from the containers on Network.
	APIServerURL         string `json:"api_server_url"`
	APIServerURLForNodes string `json:"api_server_url_for_nodes"`

	// SchedulerURL serves the scheduler's /metrics to everybody, with a
	// certificate that it made itself. Empty on a real k3s.
	SchedulerURL string `json:"scheduler_url"`

	// ServerVersion is what the API server reports, such as v1.34.4+k3s1.
	ServerVersion string `json:"server_version"`

	// JoinTokenFile holds the token that agents join with; WrongTokenFile one
	// that looks right and is refused. Both have mode 0400.
	JoinTokenFile  string `json:"join_token_file"`
	WrongTokenFile string `json:"wrong_token_file"`

	DockerHost string `json:"docker_host"`
	Network    string `json:"network"`
	Subnet     string `json:"subnet"`
	Gateway    string `json:"gateway"`

	// Image is rancher/k3s at ServerVersion, stand-in or real; the stand-in has
	// another name on an engine that has an image of that name. The others are
	// variants whose agent exits at once with code 1, joins only after
	// SlowDelay, or never joins.
	Image      string `json:"image"`
	ImageExits string `json:"image_exits"`
	ImageSlow  string `json:"image_slow"`
	ImageStuck string `json:"image_stuck"`

	// ToxiproxyURL is the API of the proxy that is in front of the API server;
	// its proxies are called "nodes" and "control". Empty on a real k3s.
	ToxiproxyURL string `json:"toxiproxy_url"`

	// PrivateEngine says that the Docker engine was started for this
	// environment; a test may then do with it what it likes.
	PrivateEngine bool `json:"private_engine"`
	// MadePluginDir says that the private engine made Docker's folder in /run,
	// which therefore goes with it.
	MadePluginDir bool `json:"made_plugin_dir"`
	// RealK3s says that server and agents are the true rancher/k3s.
	RealK3s bool `json:"real_k3s"`

	// Keep is Options.Keep of any Start so far.
	Keep bool `json:"keep"`

	opts  Options
	using *os.File // holds a shared lock that counts this process among the users
}

// Logs returns the folder with one log for each program.
func (e *Env) Logs() string { return filepath.Join(e.StateDir, "logs") }

func (e *Env) processes() processes { return processes{stateDir: e.StateDir} }

// Start brings the environment up, or attaches to the one that is up in the
// state folder. What a crashed run left there is removed first. On an error
// nothing stays; the ends of the logs are in the error.
func Start(ctx context.Context, opts Options) (*Env, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	unlock, err := lockState(ctx, opts)
	if err != nil {
		return nil, err
	}
	defer unlock()
	using, err := shareFile(opts.usersFile())
	if err != nil {
		return nil, err
	}
	e, err := startLocked(ctx, opts)
	if err != nil {
		unlockFile(using)
		return nil, err
	}
	e.using = using
	return e, nil
}

func startLocked(ctx context.Context, opts Options) (*Env, error) {
	if e, err := attach(ctx, opts); err == nil {
		if opts.Keep && !e.Keep {
			e.Keep = true
			err = e.save()
		}
		return e, err
	}
	if err := down(ctx, opts); err != nil {
		return nil, fmt.Errorf("remove what an earlier run left in %s: %w", opts.StateDir, err)
	}
	binaries, err := Build(ctx, opts)
	if err != nil {
		return nil, err
	}
	done := step(opts.Log, "environment is up in %s", opts.StateDir)
	e := newEnv(opts)
	if err := e.bringUp(ctx, binaries); err != nil {
		return nil, errors.Join(err, down(context.WithoutCancel(ctx), opts))
	}
	done()
	return e, nil
}

// Attach returns the environment that is up in the state folder, or an error.
func Attach(ctx context.Context, opts Options) (*Env, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	return attach(ctx, opts)
}

// Stop ends the environment in the state folder, whoever started it, and
// removes the folder; control planes beside it (StartPlane) that nobody uses any
// more go as well. It is idempotent, and works on what a crashed run left.
func Stop(ctx context.Context, opts Options) error {
	opts, err := opts.withDefaults()
	if err != nil {
		return err
	}
	unlock, err := lockState(ctx, opts)
	if err != nil {
		return err
	}
	defer unlock()
	return errors.Join(down(ctx, opts), endPlanes(opts))
}

// Stop ends the environment.
func (e *Env) Stop(ctx context.Context) error { return Stop(ctx, e.opts) }

// Release says that this process is done with the environment. The last user
// ends it, unless Options.Keep was given; a user that crashed does not count.
func (e *Env) Release(ctx context.Context) error {
	unlock, err := lockState(ctx, e.opts)
	if err != nil {
		return err
	}
	defer unlock()
	if e.using == nil {
		return nil
	}
	unlockFile(e.using)
	e.using = nil
	current, err := load(e.opts) // another process may have asked to keep it
	if err != nil || current.ID != e.ID || current.Keep {
		return nil
	}
	free, err := isFree(e.opts.usersFile())
	if err != nil || !free {
		return err
	}
	return down(ctx, e.opts)
}

func newEnv(opts Options) *Env {
	random := make([]byte, 4)
	_, _ = rand.Read(random) // never fails, by its documentation
	id := hex.EncodeToString(random)
	in := func(name string) string { return filepath.Join(opts.StateDir, name) }
	return &Env{
		ID: id, StateDir: opts.StateDir, RealK3s: opts.RealK3s,
		AdminKubeconfig: in("admin.kubeconfig"), ReaderKubeconfig: in("reader.kubeconfig"), ActorKubeconfig: in("actor.kubeconfig"),
		JoinTokenFile: in("join-token"), WrongTokenFile: in("wrong-token"),
		Network: "k3s-autoscaler-testenv-" + id,
		Keep:    opts.Keep,
		opts:    opts,
	}
}

func (e *Env) bringUp(ctx context.Context, binaries Binaries) error {
	if err := makeStateDir(e.StateDir); err != nil {
		return err
	}
	// Written before each thing that is started, so that a crash can be cleaned up.
	if err := e.save(); err != nil {
		return err
	}
	engine, loaded, err := e.findEngine(ctx, binaries)
	if err != nil {
		return err
	}
	defer engine.close()
	gateway, subnet, err := engine.createNetwork(ctx, e.Network, e.ID)
	if err != nil {
		return err
	}
	e.Gateway, e.Subnet = gateway.String(), subnet.String()
	if err := e.save(); err != nil {
		return err
	}
	if e.RealK3s {
		err = e.startRealK3s(ctx, engine)
	} else {
		var images sync.WaitGroup
		var imagesErr error
		if !loaded {
			images.Go(func() { imagesErr = e.loadImages(ctx, engine, binaries) })
		}
		err = e.startStandIns(ctx, binaries)
		images.Wait()
		err = errors.Join(err, imagesErr)
	}
	if err != nil {
		return err
	}
	if err := e.waitForCluster(ctx); err != nil {
		return err
	}
	return e.save()
}

// findEngine takes an engine that answers and runs privileged containers, or
// starts one. loaded says that the images are in it already.
func (e *Env) findEngine(ctx context.Context, binaries Binaries) (_ *engine, loaded bool, _ error) {
	existing, err := existingEngine(ctx)
	if err == nil {
		e.DockerHost = existing.host
		if err := e.save(); err != nil {
			return nil, false, err
		}
		if e.RealK3s { // the image is pulled later, and running the server tries it
			return existing, false, nil
		}
		if err = e.loadImages(ctx, existing, binaries); err == nil {
			fmt.Fprintf(e.opts.Log, "testenv: using the Docker engine at %s\n", existing.host)
			return existing, true, nil
		}
		err = errors.Join(fmt.Errorf("use the Docker engine at %s: %w", existing.host, err), existing.clean(ctx, e.Network, e.ID))
		existing.close()
	}
	fmt.Fprintf(e.opts.Log, "testenv: starting a private Docker engine (%v)\n", err)
	e.DockerHost, e.PrivateEngine = privateDockerHost(e.StateDir), true
	e.MadePluginDir = !isDir(pluginDir)
	if err := e.save(); err != nil {
		return nil, false, err
	}
	started, startErr := startEngine(ctx, e.processes(), binaries, e.RealK3s, e.opts.Log)
	if startErr != nil {
		return nil, false, errors.Join(err, startErr)
	}
	return started, false, nil
}

// loadImages loads the stand-in and runs it once as the product would.
func (e *Env) loadImages(ctx context.Context, engine *engine, binaries Binaries) error {
	done := step(e.opts.Log, "loaded the stand-in for %s:%s", k3sRepository, k3sTag())
	image, err := engine.importImages(ctx, binaries["k3s"], e.ID)
	if err != nil {
		return err
	}
	if err := engine.tryPrivileged(ctx, image, e.ID); err != nil {
		return fmt.Errorf("run a privileged container: %w", err)
	}
	done()
	e.Image = image
	e.setVariants(image)
	return nil
}

func (e *Env) setVariants(name string) {
	e.ImageExits, e.ImageSlow, e.ImageStuck = name+"-exits", name+"-slow", name+"-stuck"
}

// startStandIns runs the control plane built here, behind its two doors.
func (e *Env) startStandIns(ctx context.Context, binaries Binaries) error {
	ports, err := freeport.Take(7)
	if err != nil {
		return err
	}
	plane := controlPlane{
		processes: e.processes(), binaries: binaries, dir: filepath.Join(e.StateDir, "pki"),
		ports:   controlPlanePorts{EtcdClient: ports[0], EtcdPeer: ports[1], API: ports[2], ControllerManager: ports[3], Scheduler: ports[4]},
		gateway: net.ParseIP(e.Gateway), nodeGrace: e.opts.NodeGrace,
	}
	ca, token, err := plane.writeCredentials(randomPassword(), e.AdminKubeconfig)
	if err != nil {
		return err
	}
	for file, content := range map[string]string{e.JoinTokenFile: token, e.WrongTokenFile: ca.joinToken(randomPassword())} {
		if err := os.WriteFile(file, []byte(content+"\n"), 0o400); err != nil {
			return err
		}
	}
	if err := plane.start(ctx, e.opts.Log); err != nil {
		return err
	}
	e.APIServerURL = plane.url()
	e.SchedulerURL = "https://" + hostPort(loopback, plane.ports.Scheduler)
	e.APIServerURLForNodes = "https://" + hostPort(e.Gateway, 6443)
	e.ToxiproxyURL = "http://" + hostPort(loopback, ports[5])
	control := hostPort(loopback, ports[6])
	if err := e.openDoors(ctx, binaries, ports[5], control, hostPort(loopback, plane.ports.API)); err != nil {
		return err
	}
	return e.grantAccess(ctx, e.opts.RepositoryDir, "https://"+control, ca.pem)
}

func (e *Env) openDoors(ctx context.Context, binaries Binaries, port int, control, apiServer string) error {
	if err := e.processes().start("toxiproxy", binaries["toxiproxy-server"], "-host", loopback, "-port", fmt.Sprint(port)); err != nil {
		return err
	}
	if err := e.processes().waitFor(ctx, "toxiproxy", 15*time.Second, func(ctx context.Context) error {
		return getOK(ctx, http.DefaultClient, e.ToxiproxyURL+"/version")
	}); err != nil {
		return err
	}
	err := doors{api: e.ToxiproxyURL}.open(ctx,
		door{Name: nodeDoor, Listen: hostPort(e.Gateway, 6443), Upstream: apiServer, Enabled: true},
		door{Name: controlDoor, Listen: control, Upstream: apiServer, Enabled: true})
	if err != nil {
		return fmt.Errorf("open the doors to the API server (the Docker engine at %s must run on this machine): %w", e.DockerHost, err)
	}
	return nil
}

// waitForCluster waits until pods can be created.
func (e *Env) waitForCluster(ctx context.Context) error {
	client, err := e.adminClient()
	if err != nil {
		return err
	}
	version, err := client.Discovery().ServerVersion()
	if err != nil {
		return fmt.Errorf("ask the API server for its version: %w", err)
	}
	e.ServerVersion = version.GitVersion
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		_, err := client.CoreV1().ServiceAccounts(metav1.NamespaceDefault).Get(ctx, "default", metav1.GetOptions{})
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the default service account: %w", err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (e *Env) adminClient() (*kubernetes.Clientset, error) {
	config, err := clientcmd.BuildConfigFromFlags("", e.AdminKubeconfig)
	if err != nil {
		return nil, err
	}
	config.QPS, config.Burst = 100, 200
	return kubernetes.NewForConfig(config)
}

func randomPassword() string { return rand.Text() }
