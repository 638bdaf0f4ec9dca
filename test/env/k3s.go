package env

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/network"
	"k8s.io/client-go/tools/clientcmd"
)

// ErrNotPulled is returned by Start when the true rancher/k3s was asked for and
// no registry gives it.
var ErrNotPulled = errors.New("did not run: the image of k3s could not be pulled")

// startRealK3s runs `k3s server` as a container on the nodes' network.
func (e *Env) startRealK3s(ctx context.Context, engine *engine) error {
	e.Image = k3sRepository + ":" + k3sTag()
	if err := engine.pull(ctx, e.Image, e.opts.Log); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrNotPulled, e.Image, err)
	}
	derived := ownRepository + e.ID + ":" + k3sTag()
	if err := engine.deriveVariants(ctx, e.Image, derived, e.ID, true); err != nil {
		return err
	}
	e.setVariants(derived)
	done := step(e.opts.Log, "k3s server %s is up", k3sTag())
	password := randomPassword()
	yes := true
	name := "k3s-server-" + e.ID
	created, err := engine.client.ContainerCreate(ctx,
		&container.Config{
			Image: e.Image, Hostname: name, Labels: map[string]string{label: e.ID, serverLabel: e.ID},
			Env: []string{"K3S_TOKEN=" + password, "K3S_KUBECONFIG_MODE=600"},
			// The server is control plane only: its node would be capacity that
			// the stand-in does not have.
			Cmd: []string{
				"server", "--disable-agent", "--disable=traefik,servicelb,metrics-server,local-storage,coredns",
				"--tls-san=" + name,
				"--kube-controller-manager-arg=node-monitor-grace-period=" + e.opts.NodeGrace.String(),
			},
		},
		&container.HostConfig{Privileged: true, Init: &yes, Tmpfs: map[string]string{"/run": "", "/var/run": ""}},
		&network.NetworkingConfig{EndpointsConfig: map[string]*network.EndpointSettings{e.Network: {}}}, nil, name)
	if err != nil {
		return fmt.Errorf("create the k3s server: %w", err)
	}
	if err := engine.client.ContainerStart(ctx, created.ID, container.StartOptions{}); err != nil {
		return fmt.Errorf("start the k3s server: %w", err)
	}
	inspected, err := engine.client.ContainerInspect(ctx, created.ID)
	if err != nil {
		return err
	}
	address := inspected.NetworkSettings.Networks[e.Network].IPAddress
	e.APIServerURL = "https://" + net.JoinHostPort(address, "6443")
	e.APIServerURLForNodes = e.APIServerURL
	ca, err := e.fetchAdminKubeconfig(ctx, engine, created.ID)
	if err != nil {
		return err
	}
	token, err := engine.readFile(ctx, created.ID, "/var/lib/rancher/k3s/server/node-token")
	if err != nil {
		return fmt.Errorf("read the join token: %w", err)
	}
	wrong := strings.TrimSpace(string(token))
	wrong = wrong[:strings.LastIndexByte(wrong, ':')+1] + randomPassword()
	for file, content := range map[string]string{e.JoinTokenFile: string(token), e.WrongTokenFile: wrong + "\n"} {
		if err := os.WriteFile(file, []byte(content), 0o400); err != nil {
			return err
		}
	}
	done()
	return e.grantAccess(ctx, e.opts.RepositoryDir, e.APIServerURL, ca)
}

// fetchAdminKubeconfig waits until the server has written its kubeconfig and
// answers, and returns its certificate authority.
func (e *Env) fetchAdminKubeconfig(ctx context.Context, engine *engine, id string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	for {
		err := func() error {
			content, err := engine.readFile(ctx, id, "/etc/rancher/k3s/k3s.yaml")
			if err != nil {
				return err
			}
			config, err := clientcmd.Load(content)
			if err != nil {
				return err
			}
			for _, cluster := range config.Clusters {
				cluster.Server = e.APIServerURL
			}
			if err := clientcmd.WriteToFile(*config, e.AdminKubeconfig); err != nil {
				return err
			}
			client, err := e.adminClient()
			if err != nil {
				return err
			}
			_, err = client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
			return err
		}()
		if err == nil {
			config, err := clientcmd.BuildConfigFromFlags("", e.AdminKubeconfig)
			if err != nil {
				return nil, err
			}
			return config.CAData, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for the k3s server: %w\n%s", err, engine.logTail(context.WithoutCancel(ctx), id))
		case <-time.After(500 * time.Millisecond):
		}
	}
}

func (e *engine) pull(ctx context.Context, name string, log io.Writer) error {
	if _, err := e.client.ImageInspect(ctx, name); err == nil {
		return nil
	}
	defer step(log, "pulling %s ended", name)()
	progress, err := e.client.ImagePull(ctx, name, image.PullOptions{})
	if err != nil {
		return err
	}
	defer progress.Close()
	if _, err := io.Copy(io.Discard, progress); err != nil {
		return err
	}
	// A pull that failed half way reports it in the stream, with status 200.
	_, err = e.client.ImageInspect(ctx, name)
	return err
}

// readFile reads one file of a container, running or not.
func (e *engine) readFile(ctx context.Context, id, path string) ([]byte, error) {
	stream, _, err := e.client.CopyFromContainer(ctx, id, path)
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	archive := tar.NewReader(stream)
	if _, err := archive.Next(); err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(archive, 1<<20))
}

func (e *engine) logTail(ctx context.Context, id string) string {
	stream, err := e.client.ContainerLogs(ctx, id, container.LogsOptions{ShowStdout: true, ShowStderr: true, Tail: "30"})
	if err != nil {
		return err.Error()
	}
	defer stream.Close()
	content, _ := io.ReadAll(io.LimitReader(stream, 1<<16))
	return string(content)
}
