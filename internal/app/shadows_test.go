package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	metrics "k8s.io/metrics/pkg/client/clientset/versioned"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/bus/bustest"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/api"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/config"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/provider"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/replay"
)

// closedWorld has nothing for anybody.
type closedWorld struct{ asked []string }

func (w *closedWorld) Reader(config.Cluster) (kubernetes.Interface, metrics.Interface, error) {
	w.asked = append(w.asked, "reader")
	return nil, nil, errors.New("closed")
}

func (w *closedWorld) Actor(config.Cluster) (kubernetes.Interface, error) {
	w.asked = append(w.asked, "actor")
	return nil, errors.New("closed")
}

func (w *closedWorld) Provider(config.Cluster, config.Pool, *bus.Notes) (provider.NodeProvider, error) {
	w.asked = append(w.asked, "provider")
	return nil, errors.New("closed")
}

func TestTheShadowHoldsNeitherACredentialNorAProvider(t *testing.T) {
	t.Parallel()
	b, w := setup(t), &closedWorld{}
	a, err := New(t.Context(), Options{Config: b.config, Roles: []string{RoleShadow}, World: w, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	defer func() { require.NoError(t, a.Close()) }()
	require.Empty(t, w.asked, "it asks for nothing of the world")
	require.NotContains(t, acting, RoleShadow, "a dry run may have it")

	p, err := Permissions(RoleShadow)
	require.NoError(t, err)
	for _, s := range p.Publish.Allow {
		if rest, ok := strings.CutPrefix(s, "k3sas."); ok {
			require.True(t, strings.HasSuffix(rest, "._cluster.shadow.decided") || strings.Contains(rest, ".deadletter.") ||
				strings.HasSuffix(rest, ".timer.shadow.fired"), "it may publish %s", s)
		}
	}
}

// shadowed is an app in which a candidate can be judged: a pool of max 1, and pods
// that want more.
type shadowed struct {
	*testBundle
	t    *testing.T
	app  *App
	stop func()
}

// maxes are the configuration with other limits.
func maxes(n int) string {
	return fmt.Sprintf(`
clusters: [{name: home, pools: [{name: burst, provider: simulated, min: 0, max: %d, cpu: 1, memory: 1Gi}]}]
collector: {changed_every: 1s}
bus: {embedded: {dir: bus, sync: 1m}}
audit: {sqlite: {path: audit.db}}
api: {listen: "127.0.0.1:0", token_files: [token]}
`, n)
}

func newShadowed(t *testing.T) *shadowed {
	t.Helper()
	s := &shadowed{testBundle: setup(t), t: t}
	s.configure(maxes(1))
	ctx, end := context.WithCancel(context.Background())
	t.Cleanup(end)
	go func() { _ = s.world.world.Run(ctx) }() // ends with the test
	t.Cleanup(func() {
		if s.stop != nil {
			s.stop()
		}
	})
	return s
}

func (s *shadowed) configure(text string) {
	s.t.Helper()
	c, err := config.Parse("config.yaml", []byte(text), s.dir)
	require.NoError(s.t, err)
	s.config = c
}

func (s *shadowed) start() {
	s.t.Helper()
	s.app, s.stop = s.run(s.t, false)
	s.await("the policy is in force", func() bool { return s.cluster().Policy != "" && s.cluster().Problem == "" })
}

func (s *shadowed) restart() {
	s.t.Helper()
	s.stop()
	s.start()
}

func (s *shadowed) await(what string, check func() bool) {
	s.t.Helper()
	require.Eventually(s.t, check, time.Minute, 20*time.Millisecond, what)
}

func (s *shadowed) call(method, path string, in, out any) (int, string) {
	s.t.Helper()
	body, err := json.Marshal(in)
	require.NoError(s.t, err)
	req, err := http.NewRequestWithContext(s.t.Context(), method, "http://"+s.app.Address()+path, strings.NewReader(string(body)))
	require.NoError(s.t, err)
	token, err := os.ReadFile(filepath.Join(s.dir, "token"))
	require.NoError(s.t, err)
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	require.NoError(s.t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	require.NoError(s.t, err)
	if resp.StatusCode < 300 && out != nil {
		require.NoError(s.t, json.Unmarshal(text, out), "%s", text)
	}
	return resp.StatusCode, string(text)
}

func (s *shadowed) cluster() api.Cluster {
	s.t.Helper()
	var p api.Page[api.Cluster]
	code, text := s.call(http.MethodGet, "/v1/clusters", nil, &p)
	require.Equal(s.t, http.StatusOK, code, text)
	return p.Items[0]
}

// candidate starts to judge a configuration.
func (s *shadowed) candidate(text string) api.ShadowStarted {
	s.t.Helper()
	path := filepath.Join(s.t.TempDir(), "candidate.yaml")
	require.NoError(s.t, os.WriteFile(path, []byte(text), 0o600))
	sent, err := config.Candidate(path)
	require.NoError(s.t, err)
	var out api.ShadowStarted
	code, answer := s.call(http.MethodPost, "/v1/shadows/start", api.ShadowStart{Config: string(sent), File: "candidate.yaml", Actor: "ada", Reason: "to see"}, &out)
	require.Equal(s.t, http.StatusAccepted, code, answer)
	return out
}

func (s *shadowed) promote(id string) api.ShadowEnded {
	s.t.Helper()
	var out api.ShadowEnded
	code, answer := s.call(http.MethodPost, "/v1/shadows/promote", api.ShadowEnd{Shadow: id, Actor: "ada", Reason: "good"}, &out)
	require.Equal(s.t, http.StatusAccepted, code, answer)
	return out
}

// applied are the maxima of the policies that were in force, oldest first.
func (s *shadowed) applied() (out []int) {
	s.t.Helper()
	for d, err := range s.app.Events(s.t.Context(), bus.ReadOptions{Cluster: "home", Types: []string{events.TypeConfigApplied}}) {
		require.NoError(s.t, err)
		p, err := events.Decode[events.ConfigApplied](d.Event)
		require.NoError(s.t, err)
		out = append(out, p.Policy.Pools[0].Max)
	}
	return out
}

// inForce waits until decision follows a policy with a maximum.
func (s *shadowed) inForce(want int) {
	s.t.Helper()
	s.await(fmt.Sprintf("max is %d", want), func() bool {
		var p api.Page[api.Pool]
		code, _ := s.call(http.MethodGet, "/v1/pools", nil, &p)
		return code == http.StatusOK && len(p.Items) == 1 && p.Items[0].Max == want
	})
}

// wantsNodes adds pods that take a node each.
func (s *shadowed) wantsNodes(n int) {
	s.t.Helper()
	for i := range n {
		_, err := s.world.world.Client().CoreV1().Pods("default").Create(s.t.Context(), &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("big-", i), Namespace: "default"},
			Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "x", Resources: corev1.ResourceRequirements{
				Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("900m")}}}}},
		}, metav1.CreateOptions{})
		require.NoError(s.t, err)
	}
}

func (s *shadowed) diff() api.ShadowDiff {
	s.t.Helper()
	var d api.ShadowDiff
	code, text := s.call(http.MethodGet, "/v1/shadows/diff", nil, &d)
	require.Equal(s.t, http.StatusOK, code, text)
	return d
}

func TestACandidateIsJudgedPromotedAndStaysThroughStarts(t *testing.T) {
	t.Parallel()
	s := newShadowed(t)
	s.start()
	s.await("a checkpoint", func() bool { return s.count(t, s.app, events.TypeDecisionCheckpointed) > 0 })
	started := s.candidate(maxes(3))
	s.await("it is compared", func() bool { c := s.cluster(); return c.Shadow != nil && c.Shadow.Waiting == "" })
	require.Equal(t, started.ID, s.cluster().Shadow.ID)

	s.wantsNodes(5) // two of them have room on the server
	s.await("the candidate would add", func() bool { return s.diff().Added >= 2 })
	d := s.diff()
	require.Equal(t, "burst", d.Differences[0].Pool)
	require.Equal(t, events.EffectAdd, d.Differences[0].Effect)
	require.NotEmpty(t, d.Differences[0].Candidate.Reason.Message)
	require.NotEmpty(t, d.Differences[0].Live.Reason.Message)
	require.Zero(t, d.Shadow.Corrected, "the shadow was in step with decision")
	s.await("the one node", func() bool { return s.count(t, s.app, events.TypeNodeReady) == 1 })
	require.Equal(t, 1, s.count(t, s.app, events.TypeNodeClaimed), "nobody acts on what the candidate would do")

	// Promoted, it is in force at once; status says that the file is another.
	ended := s.promote(started.ID)
	require.True(t, ended.AheadOfFile)
	s.inForce(3)
	s.await("its nodes", func() bool { return s.count(t, s.app, events.TypeNodeReady) == 3 })
	require.Equal(t, 1, s.count(t, s.app, events.TypePolicyPromoted))
	c := s.cluster()
	require.Nil(t, c.Shadow, "the comparison has ended")
	require.Equal(t, "good", c.Promoted.Reason)
	require.Contains(t, c.Promoted.Actor, "ada@")
	require.Equal(t, "candidate.yaml", c.Promoted.File)

	// A start with the old file takes nothing back.
	s.restart()
	s.inForce(3)
	require.NotNil(t, s.cluster().Promoted)
	require.Equal(t, []int{1, 3, 3}, s.applied())
	// Nor does one after somebody wrote a comment into the file.
	s.stop()
	s.configure(maxes(1) + "# a comment\n")
	s.start()
	s.inForce(3)

	// The file catches up.
	s.stop()
	s.configure(maxes(3))
	s.start()
	s.await("nothing is promoted any more", func() bool { return s.cluster().Promoted == nil })
	s.inForce(3)
	require.Equal(t, 1, s.count(t, s.app, events.TypePolicyPromoted), "a start promotes nothing")

	// Everything that was decided is decided again, byte for byte, shadow or not.
	s.stop()
	s.stop = nil
	r, err := Decide(t.Context(), DecideOptions{Config: s.config, Options: replay.DecisionOptions{}})
	require.NoError(t, err)
	require.True(t, r.Equal(), "%+v", r.Clusters)
}

func TestAFileThatIsChangedAfterAPromotionTakesItsPlace(t *testing.T) {
	t.Parallel()
	s := newShadowed(t)
	s.start()
	s.promote(s.candidate(maxes(3)).ID)
	s.inForce(3)
	s.stop()
	s.configure(maxes(2))
	s.start()
	s.inForce(2)
	s.await("nothing is promoted any more", func() bool { return s.cluster().Promoted == nil })
	require.Equal(t, []int{1, 3, 2}, s.applied())
}

func TestAPolicyThatWasReplacedCanBePromotedAgain(t *testing.T) {
	t.Parallel()
	s := newShadowed(t)
	s.start()
	s.promote(s.candidate(maxes(3)).ID)
	s.inForce(3)
	back := s.candidate(maxes(1))
	require.False(t, back.Same)
	require.False(t, s.promote(back.ID).AheadOfFile, "the file says that")
	s.inForce(1)
	require.Equal(t, []int{1, 3, 1}, s.applied(), "A, B, A are three events")
	s.await("nothing is promoted any more", func() bool { return s.cluster().Promoted == nil })
	s.restart()
	s.inForce(1)
	s.promote(s.candidate(maxes(3)).ID)
	s.inForce(3)
}

func TestWhatCanNotBeJudgedOrPromotedIsRefused(t *testing.T) {
	t.Parallel()
	s := newShadowed(t)
	s.start()
	refused := func(path string, in any, code int, want string) {
		t.Helper()
		got, text := s.call(http.MethodPost, path, in, nil)
		require.Equal(t, code, got, text)
		require.Contains(t, text, want)
	}
	bad := `{"clusters":[{"name":"home","kubeconfig":"in-cluster","pools":[{"name":"burst","provider":"simulated","min":4,"max":3,"cpu":"1","memory":"1Gi"}]}]}`
	refused("/v1/shadows/start", api.ShadowStart{Config: bad, Reason: "x"}, http.StatusUnprocessableEntity, "min is 4, larger than max (3)")
	refused("/v1/shadows/start", api.ShadowStart{Config: strings.NewReplacer("home", "elsewhere", "4", "1").Replace(bad), Reason: "x"}, http.StatusUnprocessableEntity, "elsewhere")
	refused("/v1/shadows/start", api.ShadowStart{Config: strings.ReplaceAll(bad, `"1Gi"`, `"${env:HOME}"`), Reason: "x"}, http.StatusUnprocessableEntity, "write the value itself")
	refused("/v1/shadows/start", api.ShadowStart{Config: bad, Reason: " "}, http.StatusUnprocessableEntity, "reason is empty")
	refused("/v1/shadows/start", api.ShadowStart{Config: bad, Reason: "x", Cluster: "lab"}, http.StatusUnprocessableEntity, "There is no cluster")
	refused("/v1/shadows/promote", api.ShadowEnd{Shadow: "x", Reason: "x"}, http.StatusNotFound, "No candidate policy is judged")
	code, _ := s.call(http.MethodGet, "/v1/shadows/diff", nil, nil)
	require.Equal(t, http.StatusNotFound, code)

	// A pool that nothing here could fill may be judged, and not be promoted.
	x := s.candidate(strings.Replace(maxes(1), "pools: [", "pools: [{name: gpu, provider: simulated, max: 1, cpu: 4, memory: 8Gi}, ", 1))
	require.Equal(t, []string{"gpu"}, x.NewPools)
	refused("/v1/shadows/promote", api.ShadowEnd{Shadow: x.ID, Reason: "x"}, http.StatusConflict, "Pool gpu (provider simulated) is not in the running configuration")

	// Whoever looked at another candidate ends nothing.
	y := s.candidate(maxes(1))
	require.True(t, y.Same)
	require.Equal(t, x.ID, y.Replaced)
	refused("/v1/shadows/promote", api.ShadowEnd{Shadow: x.ID, Reason: "x"}, http.StatusConflict, "Another candidate policy is judged")
	refused("/v1/shadows/promote", api.ShadowEnd{Shadow: y.ID, Reason: "x"}, http.StatusConflict, "in force already")
	var out api.ShadowEnded
	code, text := s.call(http.MethodPost, "/v1/shadows/stop", api.ShadowEnd{Shadow: y.ID, Reason: "seen enough"}, &out)
	require.Equal(t, http.StatusAccepted, code, text)
	require.Nil(t, s.cluster().Shadow)
	require.Equal(t, []int{1}, s.applied())
}

func TestACandidateThatNobodyJudgesIsSaidToWait(t *testing.T) {
	t.Parallel()
	s := newShadowed(t)
	var err error
	s.app, err = New(t.Context(), Options{Config: s.config, Version: "test", Roles: []string{RoleAuditing, RoleDecision, RoleCollector, RoleGateway}, World: s.world,
		Times: bustest.Times(), Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.app.Run(ctx) }()
	s.stop = func() {
		cancel()
		require.NoError(t, <-done)
		require.NoError(t, s.app.Close())
	}
	s.await("decision has the policy", func() bool { return s.cluster().Policy != "" })
	s.candidate(maxes(3))
	require.Contains(t, s.cluster().Shadow.Waiting, "does a process run the role shadow?")
}
