//go:build e2e

package e2e

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	docker "github.com/docker/docker/client"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/test/env"
)

// The world that every test shares; each has a cluster name, pools and a
// namespace of its own.
var (
	world   *env.Env
	admin   kubernetes.Interface
	engine  *docker.Client
	binary  string // built with the tag crashtest
	workDir string
)

func TestMain(m *testing.M) {
	if config := os.Getenv(natsServerConfig); config != "" {
		os.Exit(serveNATS(config))
	}
	flag.Parse()
	// Lives that crash wait most of their time; they are what runs in parallel.
	if err := flag.Set("test.parallel", strconv.Itoa(parallelLives)); err != nil {
		panic(err)
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Minute)
	defer cancel()
	fail := func(what string, err error) int {
		fmt.Fprintf(os.Stderr, "e2e: %s: %v\n", what, err)
		return 1
	}
	var err error
	if world, err = env.Start(ctx, env.Options{}); err != nil {
		return fail("start the environment", err)
	}
	defer func() {
		if err := world.Release(context.Background()); err != nil {
			fmt.Fprintf(os.Stderr, "e2e: end the environment: %v\n", err)
		}
	}()
	rc, err := clientcmd.BuildConfigFromFlags("", world.AdminKubeconfig)
	if err != nil {
		return fail("admin kubeconfig", err)
	}
	rc.QPS, rc.Burst = 200, 400
	if admin, err = kubernetes.NewForConfig(rc); err != nil {
		return fail("admin client", err)
	}
	if engine, err = docker.NewClientWithOpts(docker.WithHost(world.DockerHost), docker.WithAPIVersionNegotiation()); err != nil {
		return fail("Docker client", err)
	}
	if workDir, err = os.MkdirTemp("", "k3s-autoscaler-e2e-"); err != nil {
		return fail("work folder", err)
	}
	defer os.RemoveAll(workDir)
	binary = filepath.Join(workDir, "k3s-autoscaler")
	build := exec.CommandContext(ctx, "go", "build", "-tags", "crashtest", "-o", binary, "../../cmd/k3s-autoscaler")
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	if err := build.Run(); err != nil {
		return fail("build the product", err)
	}
	return m.Run()
}

// product is one autoscaler of one test: configuration, data, and the process
// that may be killed and started again.
type product struct {
	t       *testing.T
	cluster string
	dir     string
	config  string
	url     string
	token   string // file
	// reader and actor are the kubeconfigs; empty: the environment's.
	reader, actor string
	cmd           *exec.Cmd
	exited        chan struct{}
	log           *os.File
}

// pool is what a test wants of its pool; zero values are the harness's.
type pool struct {
	Name       string
	Min, Max   int
	CPU        string // default 500m
	Memory     string // default 512Mi
	Image      string // default auto
	Extra      string // more YAML of the pool, indented by 8
	Docker     string // more YAML of docker:, indented by 10
	Cluster    string // more YAML of the cluster, indented by 4
	Policy     string // more YAML of policy:, indented by 2
	TokenFile  string // default the right one
	Unneeded   string // default 2s
	DrainLimit string // default 60s
	Register   string // default 60s
	UpCooldown string // default 5s
	Stabilize  string // default 2s
	Down       string // more of scale_down, beginning with a comma
	Engine     string // default the environment's
	Hosts      string // the list of hosts, in YAML; default one, Engine
	Provider   string // another provider than docker, and its settings: YAML of the pool, indented by 8
	Top        string // more YAML of the file
	Backoff    string // default {initial: 3s, max: 10s}
	More       []pool // of the same cluster; of these all that belongs to a pool counts
}

// patient waits for an answer as long as a request to the bus may take, not for ever.
var patient = &http.Client{Timeout: time.Minute}

// newProduct writes the configuration of a cluster with one pool. Its nodes
// carry the label pool=<cluster> and a taint, so that tests don't see each
// other's nodes.
func newProduct(t *testing.T, cluster string, p pool) *product {
	t.Helper()
	sayWhere(t)
	pr := &product{t: t, cluster: cluster, dir: t.TempDir(), url: "http://" + freeAddress(t)}
	pr.config, pr.token = filepath.Join(pr.dir, "config.yaml"), filepath.Join(pr.dir, "api.token")
	removeAll(t, cluster) // what a run that was cut off left
	pr.mustCLI("key", "new", "--file", pr.token)
	pr.writeConfig(p)
	t.Cleanup(func() {
		pr.stop()
		pr.decidesAgain()
		removeAll(t, cluster)
		showLog(t, "the product", filepath.Join(pr.dir, "run.log"), 120)
	})
	return pr
}

func (p *product) writeConfig(pl pool) {
	p.t.Helper()
	pools := p.poolYAML(pl)
	for _, more := range pl.More {
		pools += p.poolYAML(more)
	}
	text := fmt.Sprintf(`clusters:
  - name: %s
    kubeconfig: %s
    actor_kubeconfig: %s
    server_url: %s
    token_file: %s
    pools:
%s%spolicy:
  startup_grace: 1s
%sbus:
  embedded: {dir: data/bus}
audit:
  sqlite: {path: data/audit.db}
api:
  listen: %s
  token_files: [api.token]
telemetry: {log_level: debug, log_format: text}
%s`, p.cluster, cmp.Or(p.reader, world.ReaderKubeconfig), cmp.Or(p.actor, world.ActorKubeconfig), world.APIServerURLForNodes,
		cmp.Or(pl.TokenFile, world.JoinTokenFile), pools, pl.Cluster, pl.Policy, strings.TrimPrefix(p.url, "http://"), pl.Top)
	require.NoError(p.t, os.WriteFile(p.config, []byte(text), 0o600))
}

// poolYAML is a pool as the configuration has it.
func (p *product) poolYAML(pl pool) string {
	return fmt.Sprintf(`      - name: %s
%s        min: %d
        max: %d
        cpu: %s
        memory: %s
        labels: {pool: %s}
        taints: ["pool=%s:NoSchedule"]
        register_deadline: %s
        backoff: %s
        drain: {deadline: %s}
        scale_up: {cooldown: %s}
        scale_down: {unneeded: %s, delay_after_add: 2s, delay_after_failure: 2s, cooldown: 1s, stabilization: %s, min_lifetime: 1s, flap: {count: 0}%s}
%s`, cmp.Or(pl.Name, "burst"), cmp.Or(pl.Provider, pl.dockerYAML()), pl.Min, pl.Max, cmp.Or(pl.CPU, "500m"), cmp.Or(pl.Memory, "512Mi"), p.cluster, p.cluster,
		cmp.Or(pl.Register, "60s"), cmp.Or(pl.Backoff, "{initial: 3s, max: 10s}"), cmp.Or(pl.DrainLimit, "60s"), cmp.Or(pl.UpCooldown, "5s"),
		cmp.Or(pl.Unneeded, "2s"), cmp.Or(pl.Stabilize, "2s"), pl.Down, pl.Extra)
}

// dockerYAML says which engines make the nodes of a pool.
func (pl pool) dockerYAML() string {
	// Many small nodes share a small machine.
	host := cmp.Or(pl.Engine, world.DockerHost)
	hosts := cmp.Or(pl.Hosts, fmt.Sprintf("[{name: %s, host: %s, cpu: 64, memory: 1Ti}]", engineName(host), host))
	return fmt.Sprintf(`        provider: docker
        docker:
          hosts: %s
          network: %s
          image: %s
%s`, hosts, world.Network, cmp.Or(pl.Image, "auto"), pl.Docker)
}

// engineName is a name for each way to an engine.
func engineName(host string) string {
	return fmt.Sprintf("engine-%08x", crc32.ChecksumIEEE([]byte(host)))
}

// start runs the product until it is ready.
func (p *product) start(args ...string) {
	p.t.Helper()
	p.startEnv(nil, args...)
	p.ready()
}

func (p *product) startEnv(environ []string, args ...string) {
	p.t.Helper()
	log, err := os.OpenFile(filepath.Join(p.dir, "run.log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	require.NoError(p.t, err)
	p.log = log
	p.cmd = exec.Command(binary, append([]string{"run", "--config", p.config}, args...)...)
	p.cmd.Env = append(os.Environ(), environ...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	require.NoError(p.t, p.cmd.Start())
	p.exited = make(chan struct{})
	cmd, exited := p.cmd, p.exited
	go func() { _ = cmd.Wait(); close(exited) }()
}

func (p *product) ready() {
	p.t.Helper()
	eventually(p.t, 60*time.Second, "the product is ready", func() error {
		select {
		case <-p.exited:
			b, _ := os.ReadFile(p.log.Name())
			p.t.Fatalf("the product ended at once: %s\n%s", p.cmd.ProcessState, lastLines(b, 40))
		default:
		}
		resp, err := patient.Get(p.url + "/readyz")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: %s", resp.Status, b)
		}
		return nil
	})
}

// stop ends the process as an operator would, and kills it if that fails.
func (p *product) stop() {
	if p.cmd == nil {
		return
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.exited:
	case <-time.After(30 * time.Second):
		p.t.Errorf("the product (%s) did not end within 30 s of SIGTERM; its log ends with what it waits for", strings.Join(p.cmd.Args[1:], " "))
		_ = p.cmd.Process.Signal(syscall.SIGQUIT) // a Go process writes its goroutines
		select {
		case <-p.exited:
		case <-time.After(10 * time.Second):
			_ = p.cmd.Process.Kill()
			<-p.exited
		}
	}
	p.cmd = nil
	p.log.Close()
}

// decidesAgain takes every decision of the test again, from the log that the
// product left: each must be what it was, byte for byte.
func (p *product) decidesAgain() {
	p.t.Helper()
	if p.t.Failed() || p.log == nil {
		return // there is more to say, or it never ran
	}
	out, errOut, err := p.cli("replay", "--decisions", "--config", p.config)
	if err != nil && strings.Contains(errOut, "no checkpoint of decision") {
		p.t.Logf("no decision was taken that could be taken again")
		return
	}
	if err != nil {
		p.t.Errorf("replay --decisions: %v\n%s%s", err, out, errOut)
		return
	}
	p.t.Logf("replay --decisions says:\n%s", out)
}

// cli runs the product's own command line against it.
func (p *product) cli(args ...string) (stdout, stderr string, err error) {
	cmd := exec.Command(binary, args...)
	cmd.Env = append(os.Environ(), "K3S_AUTOSCALER_SERVER="+p.url, "K3S_AUTOSCALER_TOKEN_FILE="+p.token, "HOME="+p.dir)
	cmd.Dir = p.dir
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err = cmd.Run()
	return out.String(), errOut.String(), err
}

func (p *product) mustCLI(args ...string) string {
	p.t.Helper()
	out, errOut, err := p.cli(args...)
	require.NoError(p.t, err, "k3s-autoscaler %s: %s%s", strings.Join(args, " "), out, errOut)
	return out
}

// post sends a body to the webhook.
func (p *product) post(body []byte) *http.Response {
	p.t.Helper()
	req, err := http.NewRequest(http.MethodPost, p.url+"/v1/alerts", bytes.NewReader(body))
	require.NoError(p.t, err)
	token, err := os.ReadFile(p.token)
	require.NoError(p.t, err)
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	req.Header.Set("Content-Type", "application/json")
	resp, err := patient.Do(req)
	require.NoError(p.t, err)
	p.t.Cleanup(func() { resp.Body.Close() })
	return resp
}

// history returns the audited events of a type, oldest first; empty: all.
func (p *product) history(eventType string) []events.Event {
	p.t.Helper()
	list, err := p.audited(eventType)
	require.NoError(p.t, err)
	return list
}

func (p *product) audited(eventType string) ([]events.Event, error) {
	args := []string{"audit", "list", "-o", "json", "--limit", "10000", "--oldest-first"}
	if eventType != "" {
		args = append(args, "--type", eventType)
	}
	out, errOut, err := p.cli(args...)
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, errOut)
	}
	var records []struct{ Event events.Event }
	if err := json.Unmarshal([]byte(out), &records); err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	list := make([]events.Event, len(records))
	for i, r := range records {
		list[i] = r.Event
	}
	return list, nil
}

// payloads decodes the audited events of a type.
func payloads[T events.Payload](t *testing.T, p *product) []T {
	t.Helper()
	var zero T
	var out []T
	for _, e := range p.history(zero.EventType()) {
		v, err := events.Decode[T](e)
		require.NoError(t, err)
		out = append(out, v)
	}
	return out
}

// containers lists the containers of a cluster, running or not.
func containers(t *testing.T, cluster string) []container.Summary {
	t.Helper()
	list, err := engine.ContainerList(context.Background(), container.ListOptions{
		All: true, Filters: filters.NewArgs(filters.Arg("label", events.LabelCluster+"="+cluster))})
	require.NoError(t, err)
	return list
}

// ourNodes lists the Node objects of a cluster's claims and how many are Ready.
func ourNodes(t *testing.T, cluster string) (names []string, ready int) {
	t.Helper()
	list, err := admin.CoreV1().Nodes().List(context.Background(), metav1.ListOptions{LabelSelector: events.LabelCluster + "=" + cluster})
	require.NoError(t, err)
	for _, n := range list.Items {
		names = append(names, n.Name)
		for _, c := range n.Status.Conditions {
			if c.Type == "Ready" && c.Status == "True" {
				ready++
			}
		}
	}
	return names, ready
}

// removeAll forgets what a test left in the shared world.
func removeAll(t *testing.T, cluster string) {
	t.Helper()
	ctx := context.Background()
	for _, c := range containers(t, cluster) {
		_ = engine.ContainerRemove(ctx, c.ID, container.RemoveOptions{Force: true, RemoveVolumes: true})
	}
	names, _ := ourNodes(t, cluster)
	for _, n := range names {
		_ = admin.CoreV1().Nodes().Delete(ctx, n, metav1.DeleteOptions{})
		_ = admin.CoreV1().Secrets("kube-system").Delete(ctx, n+".node-password.k3s", metav1.DeleteOptions{})
	}
}

// doing is what the tests waited for last, by their names.
var doing sync.Map

// sayWhere makes a failed test end with what it waited for last: the logs that it
// shows are longer than what many a viewer keeps. It must be the first to ask for
// a clean-up.
func sayWhere(t *testing.T) {
	if _, known := doing.LoadOrStore(t.Name(), "its start"); known {
		return
	}
	t.Cleanup(func() {
		what, _ := doing.LoadAndDelete(t.Name())
		if t.Failed() {
			t.Logf("it failed at or after: %s", what)
		}
	})
}

// eventually repeats check until it succeeds or the time is up.
func eventually(t *testing.T, limit time.Duration, what string, check func() error) {
	t.Helper()
	doing.Store(t.Name(), what)
	deadline := time.Now().Add(limit)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s: %v", what, limit, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// never fails if check succeeds within the time.
func never(t *testing.T, during time.Duration, what string, check func() bool) {
	t.Helper()
	doing.Store(t.Name(), "never "+what)
	for deadline := time.Now().Add(during); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		if check() {
			t.Fatalf("%s happened", what)
		}
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	return freeAddresses(t, 1)[0]
}

// keepLogs is set in the environment to a folder that shall have the whole logs,
// also of tests that pass.
const keepLogs = "K3S_AUTOSCALER_E2E_LOGS"

// showLog ends the output of a failed test with the last lines of a log.
func showLog(t *testing.T, who, file string, lines int) {
	b, err := os.ReadFile(file)
	if err != nil {
		return // it never ran
	}
	if t.Failed() {
		t.Logf("log of %s:\n%s", who, lastLines(b, lines))
	}
	if dir := os.Getenv(keepLogs); dir != "" {
		name := strings.NewReplacer("/", "_", " ", "_").Replace(t.Name() + "." + who + ".log")
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Errorf("keep a log: %v", err)
		}
	}
}

func lastLines(b []byte, n int) string {
	lines := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return strings.Join(lines, "\n")
}
