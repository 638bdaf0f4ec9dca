//go:build e2e

package live

import (
	"context"
	"crypto/tls"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
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
	environment *env.Env
	program     string // path of the framework's program, which packs
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Minute)
	defer cancel()
	fail := func(what string, err error) int {
		fmt.Fprintf(os.Stderr, "live: %s: %v\n", what, err)
		return 1
	}
	var err error
	if environment, err = env.Start(ctx, env.Options{}); err != nil {
		return fail("start the environment", err)
	}
	defer func() {
		if err := environment.Release(context.Background()); err != nil {
			fmt.Fprintf(os.Stderr, "live: end the environment: %v\n", err)
		}
	}()
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

// newCluster gives the test an empty cluster with the namespaces of the cases.
func newCluster(t *testing.T) *cluster {
	t.Helper()
	ctx := context.Background()
	if environment.RealK3s {
		t.Skip("a real k3s has its scheduler inside, and shows nobody its queue")
	}
	require.NotEmpty(t, environment.SchedulerURL, "the environment was started by an older version: make down, and try again")
	require.NoError(t, environment.Reset(ctx))
	rc, err := clientcmd.BuildConfigFromFlags("", environment.AdminKubeconfig)
	require.NoError(t, err)
	rc.QPS, rc.Burst, rc.WarningHandler = 1000, 2000, rest.NoWarnings{}
	// It is the lists that cost time: JSON doubles it, on either side.
	rc.ContentType, rc.AcceptContentTypes = runtime.ContentTypeProtobuf, runtime.ContentTypeProtobuf+","+runtime.ContentTypeJSON
	client, err := kubernetes.NewForConfig(rc)
	require.NoError(t, err)
	// The scheduler makes its certificate by itself.
	insecure := &http.Client{Timeout: patience, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}} //nolint:gosec // metrics on loopback
	k := &cluster{Interface: client, metrics: environment.SchedulerURL + "/metrics", http: insecure}
	require.NoError(t, k.prepare(ctx))
	t.Cleanup(func() {
		require.NoError(t, k.clear(context.Background()))
		require.NoError(t, k.leave(context.Background()))
	})
	return k
}

// share is part of all, in percent.
func share(part, all int) float64 { return 100 * float64(part) / float64(max(all, 1)) }
