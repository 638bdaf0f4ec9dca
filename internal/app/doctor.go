package app

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/utils/clock"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/config"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/doctor"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/kube"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/promql"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/provider/docker"
)

// DoctorOptions say what is looked at.
type DoctorOptions struct {
	Config *config.Config
	// NetworkKubeconfig may create pods: with it the pod network is tried. Empty: it
	// is not, since neither identity of the product has that right.
	NetworkKubeconfig string
	NetworkImage      string
	NetworkLimit      time.Duration // default 1 min
	Clock             clock.PassiveClock
	Logger            *slog.Logger
}

// Doctor looks at everything that the configuration names, from here.
func Doctor(ctx context.Context, o DoctorOptions) doctor.Report {
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.NetworkLimit <= 0 {
		o.NetworkLimit = time.Minute
	}
	checks := []doctor.Check{o.busCheck()}
	for _, c := range o.Config.Clusters {
		checks = append(checks, o.clusterChecks(c)...)
	}
	return doctor.Run(ctx, append(checks, o.networkCheck()))
}

// busCheck asks an external bus, and looks at the folder of an embedded one.
func (o DoctorOptions) busCheck() doctor.Check {
	b := o.Config.Bus
	if b.URL == "" {
		return doctor.Check{Name: "bus", Target: b.Embedded.Dir, Run: func(context.Context) []doctor.Result { return writable(b.Embedded.Dir) }}
	}
	return doctor.Check{Name: "bus", Target: strings.Join(b.Servers(), ","), Run: func(ctx context.Context) []doctor.Result {
		r, err := bus.OpenReader(ctx, busOptions(b, Options{Logger: o.Logger}))
		if errors.Is(err, bus.ErrAbsent) {
			return []doctor.Result{{Status: doctor.Warning, Detail: "there is no stream of record yet", Fix: "k3s-autoscaler bus provision, or start the autoscaler with a credential that may make it"}}
		}
		if err != nil {
			return doctor.Failed(err, "see bus.url, the credentials of bus, and that the servers are up")
		}
		defer r.Close() //nolint:errcheck // what was read is read
		s, err := r.LogState(ctx)
		if err != nil {
			return doctor.Failed(err, "see the log of the NATS servers, and 'k3s-autoscaler bus permissions'")
		}
		return []doctor.Result{{Status: doctor.OK, Detail: fmt.Sprintf("the stream of record holds %d events", s.Events)}}
	}}
}

// writable looks whether a folder, or the one that it will be made in, takes files.
func writable(dir string) []doctor.Result {
	at := dir
	for {
		if _, err := os.Stat(at); err == nil || at == filepath.Dir(at) {
			break
		}
		at = filepath.Dir(at)
	}
	f, err := os.CreateTemp(at, ".doctor-*")
	if err != nil {
		return doctor.Failed(err, "let the user of the autoscaler write there, or set bus.embedded.dir")
	}
	_ = f.Close()
	if err := os.Remove(f.Name()); err != nil {
		return doctor.Failed(err, "let the user of the autoscaler write there")
	}
	if at != dir {
		return []doctor.Result{{Status: doctor.OK, Detail: "the embedded bus makes its folder at the first start"}}
	}
	return []doctor.Result{{Status: doctor.OK, Detail: "the folder of the embedded bus is there and can be written to"}}
}

func (o DoctorOptions) clusterChecks(c config.Cluster) []doctor.Check {
	var out []doctor.Check
	add := func(name, target string, run func(ctx context.Context) []doctor.Result) {
		out = append(out, doctor.Check{Name: name, Target: target, Run: run})
	}
	// one makes a check of a kubeconfig; what can't be loaded is the result.
	one := func(name, key, path string, run func(ctx context.Context, rc *rest.Config) []doctor.Result) {
		add(name, c.Name, func(ctx context.Context) []doctor.Result {
			if path == "" {
				return []doctor.Result{{Status: doctor.Skipped, Detail: key + " is not set"}}
			}
			rc, err := kube.Load(kubeconfigPath(path))
			if err != nil {
				return doctor.Failed(err, "mend "+key)
			}
			return run(ctx, rc)
		})
	}
	identity := func(key, path string, needs []doctor.Right) {
		one("API server", key, path, func(ctx context.Context, rc *rest.Config) []doctor.Result {
			client, err := kube.NewClient(rc)
			if err != nil {
				return doctor.Failed(err, "mend "+key)
			}
			return doctor.APIServer(ctx, client, key, needs)
		})
	}
	identity("kubeconfig", c.Kubeconfig, doctor.ReaderRights())
	identity("actor_kubeconfig", c.ActorKubeconfig, doctor.ActorRights())
	one("clock", "kubeconfig", c.Kubeconfig, func(ctx context.Context, rc *rest.Config) []doctor.Result {
		client, err := rest.HTTPClientFor(rc)
		if err != nil {
			return doctor.Failed(err, "mend kubeconfig")
		}
		return doctor.ServerClock(ctx, client, strings.TrimSuffix(rc.Host, "/")+"/version", o.Clock)
	})
	one("node clocks", "kubeconfig", c.Kubeconfig, func(ctx context.Context, rc *rest.Config) []doctor.Result {
		client, err := kube.NewClient(rc)
		if err != nil {
			return doctor.Failed(err, "mend kubeconfig")
		}
		return doctor.NodeClocks(ctx, client, o.Clock)
	})
	for _, p := range c.Pools {
		add("provider", c.Name+"/"+p.Name, func(ctx context.Context) []doctor.Result { return o.provider(ctx, c, p) })
	}
	if p := c.Prometheus; p != nil {
		add("Prometheus", c.Name, func(ctx context.Context) []doctor.Result {
			client, err := promql.New(promql.Options{URL: p.URL, TokenFile: p.TokenFile, Username: p.Username, PasswordFile: p.PasswordFile, CAFile: p.CAFile, Timeout: p.Timeout.Std()})
			if err == nil {
				_, err = client.Query(ctx, "vector(1)")
			}
			if err != nil {
				return doctor.Failed(err, "see clusters[].prometheus: address, credentials, and whether it is reached from here")
			}
			return []doctor.Result{{Status: doctor.OK, Detail: "answers queries"}}
		})
	}
	return out
}

func (o DoctorOptions) provider(ctx context.Context, c config.Cluster, p config.Pool) []doctor.Result {
	w := realWorld{log: o.Logger, engines: docker.NewEngines()}
	if p.Provider == config.ProviderExternalGRPC {
		g, err := w.externalGRPC(c, p, nil)
		if err != nil {
			return doctor.Failed(err, "mend the pool")
		}
		defer g.Close() //nolint:errcheck // of a connection that is not used again
		if err := g.Check(ctx); err != nil {
			return doctor.Failed(err, "see that the provider runs, has the node group, and trusts this client's certificate")
		}
		return []doctor.Result{{Status: doctor.OK, Detail: "answers, and has node group " + p.ExternalGRPC.NodeGroup}}
	}
	if c.ServerURL == "" || c.TokenFile == "" {
		return []doctor.Result{{Status: doctor.Skipped, Detail: "server_url or token_file is not set: a dry run needs neither, nor a provider"}}
	}
	made, err := w.Provider(c, p, nil)
	if err != nil {
		return doctor.Failed(err, "mend the pool")
	}
	list, err := made.List(ctx)
	if err != nil {
		return doctor.Failed(err, "see that the host of the pool is up and lets this user in")
	}
	return []doctor.Result{{Status: doctor.OK, Detail: fmt.Sprintf("answers; the cluster has %d machines there", len(list))}}
}

func (o DoctorOptions) networkCheck() doctor.Check {
	c := doctor.Check{Name: "pod network", Limit: o.NetworkLimit + 15*time.Second}
	c.Run = func(ctx context.Context) []doctor.Result {
		if o.NetworkKubeconfig == "" {
			return []doctor.Result{{Status: doctor.Skipped, Detail: "needs a credential that may create pods, which the autoscaler has not: --network-kubeconfig"}}
		}
		rc, err := kube.Load(o.NetworkKubeconfig)
		if err != nil {
			return doctor.Failed(err, "mend --network-kubeconfig")
		}
		client, err := kube.NewClient(rc)
		if err != nil {
			return doctor.Failed(err, "mend --network-kubeconfig")
		}
		ctx, cancel := context.WithTimeout(ctx, o.NetworkLimit)
		defer cancel()
		return doctor.Network{Client: client, Image: o.NetworkImage, ID: strings.ToLower(rand.Text()[:8])}.Run(ctx)
	}
	return c
}
