//go:build e2e

package live

import (
	"context"
	"crypto/tls"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	goruntime "runtime"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/k3s-autoscaler/k3s-autoscaler/test/env"
	"github.com/k3s-autoscaler/k3s-autoscaler/test/fit"
)

// patience is how long any one condition may take to come true. It only ends
// what would never end: nothing is measured by it.
const patience = 2 * time.Minute

var (
	planes  []*env.Plane
	program string // path of the framework's program, which packs
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Minute)
	defer cancel()
	fail := func(what string, err error) int {
		fmt.Fprintf(os.Stderr, "live: %s: %v\n", what, err)
		return 1
	}
	defer func() {
		for _, p := range planes {
			if err := p.Stop(); err != nil {
				fmt.Fprintf(os.Stderr, "live: end a control plane: %v\n", err)
			}
		}
	}()
	// A case is mostly waiting for one server or the other: one more than there are
	// cores keeps them busy. Each takes half a GiB.
	for range min(goruntime.NumCPU()+1, 8) {
		p, err := env.StartPlane(ctx, env.Options{})
		if err != nil {
			return fail("start a control plane", err)
		}
		planes = append(planes, p)
	}
	dir, err := os.MkdirTemp("", "fit-live-")
	if err != nil {
		return fail("work folder", err)
	}
	defer os.RemoveAll(dir)
	if program, err = fit.BuildScheduler(ctx, "../../..", dir); err != nil {
		return fail("build the framework's program", err)
	}
	return m.Run()
}

// number is a setting of the environment.
func number(t *testing.T, name string, standard int) int {
	v := os.Getenv(name)
	if v == "" {
		return standard
	}
	n, err := strconv.Atoi(v)
	require.NoError(t, err, "%s is %q, expected a number", name, v)
	return n
}

// firstSeed is FIT_SEED, or a fresh one.
func firstSeed(t *testing.T) int {
	seed := number(t, "FIT_SEED", 1+rand.IntN(1_000_000_000))
	t.Logf("the first seed is %d: FIT_SEED=%d repeats this run", seed, seed)
	return seed
}

// newClusters gives the test an empty cluster on each control plane, with the
// namespaces of the cases.
func newClusters(t *testing.T) []*cluster {
	t.Helper()
	out := make([]*cluster, len(planes))
	for i, p := range planes {
		out[i] = newCluster(t, p)
	}
	return out
}

func newCluster(t *testing.T, p *env.Plane) *cluster {
	t.Helper()
	ctx := context.Background()
	rc, err := clientcmd.BuildConfigFromFlags("", p.AdminKubeconfig)
	require.NoError(t, err)
	rc.QPS, rc.Burst, rc.WarningHandler = 1000, 2000, rest.NoWarnings{}
	rc.ContentType, rc.AcceptContentTypes = runtime.ContentTypeProtobuf, runtime.ContentTypeProtobuf+","+runtime.ContentTypeJSON
	client, err := kubernetes.NewForConfig(rc)
	require.NoError(t, err)
	s, err := fit.StartScheduler(program)
	require.NoError(t, err)
	// The scheduler makes its certificate by itself.
	insecure := &http.Client{Timeout: patience, Transport: &http.Transport{DisableCompression: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}} //nolint:gosec // metrics on loopback
	watching, stop := context.WithCancel(ctx)
	t.Cleanup(stop)
	v, err := watch(watching, client)
	require.NoError(t, err)
	k := &cluster{Interface: client, view: v, framework: s, metrics: p.SchedulerURL + "/metrics", http: insecure}
	require.NoError(t, k.prepare(ctx))
	t.Cleanup(func() {
		require.NoError(t, s.Close())
		require.NoError(t, k.clear(context.Background()))
		require.NoError(t, k.leave(context.Background()))
	})
	return k
}

// each tries the cases of the seeds, one after the other on each cluster, and
// returns what came of them, in the order of the seeds. What broke off has an error.
func each[T any](t *testing.T, clusters []*cluster, seeds []uint64, try func(context.Context, *cluster, uint64) (T, error)) ([]T, []error) {
	t.Helper()
	out, errs := make([]T, len(seeds)), make([]error, len(seeds))
	next := make(chan int)
	var wg sync.WaitGroup
	for _, k := range clusters {
		wg.Go(func() {
			for i := range next {
				ctx := context.Background()
				if errs[i] = k.clear(ctx); errs[i] == nil {
					out[i], errs[i] = try(ctx, k, seeds[i])
				}
			}
		})
	}
	for i := range seeds {
		next <- i
	}
	close(next)
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			t.Logf("seed %d could not be judged: %v", seeds[i], err)
		}
	}
	return out, errs
}

// share is part of all, in percent.
func share(part, all int) float64 { return 100 * float64(part) / float64(max(all, 1)) }
