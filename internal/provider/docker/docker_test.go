package docker

import (
	"archive/tar"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/provider"
)

var update = flag.Bool("update", false, "rewrite golden files")

const testToken = "K10aaaabbbbccccddddeeeeffff0000111122223333444455556666777788889999::server:s3cret+join/token"

func options(t *testing.T) Options {
	t.Helper()
	return Options{Cluster: "home", ServerURL: "https://10.0.0.5:6443", TokenFile: writeToken(t, testToken)}
}

func writeToken(t *testing.T, content string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "token")
	require.NoError(t, os.WriteFile(file, []byte(content), 0o600))
	return file
}

func spec() provider.Spec {
	return provider.Spec{
		Name: "small-abcdefghij", Cluster: "home", Pool: "small", ClaimID: "claim-1", Epoch: "epoch-1",
		CPUMilli: 1500, MemoryBytes: 1 << 30, MaxPods: 20,
		Labels:        map[string]string{"zone": "attic", "k3s-autoscaler.dev/claim": "claim-1"},
		Taints:        []provider.Taint{{Key: "ci", Value: "yes", Effect: "NoSchedule"}, {Key: "spot", Effect: "NoExecute"}},
		ServerVersion: "v1.34.4+k3s1",
	}
}

var testHost = capacity{host: "pi4", cpus: 4, memoryBytes: 8<<30 + 4096}

func TestRenderedContainerIsAsK3dMakesThem(t *testing.T) {
	t.Parallel()
	o := options(t)
	o.Network, o.ExtraArgs = "k3s", []string{"--kubelet-arg=image-gc-high-threshold=70"}
	o.ContainerLabels = map[string]string{"team": "edge"}
	o.Env = map[string]string{"HTTPS_PROXY": "http://proxy.lan:3128"}
	o.Mounts = []string{"/etc/registries.yaml:/etc/rancher/k3s/registries.yaml:ro"}
	o.Ulimits = []Ulimit{{Name: "nofile", Soft: 65536, Hard: 1048576}}
	o = o.withDefaults()
	r, err := o.render(spec(), "rancher/k3s:v1.34.4-k3s1", testHost)
	require.NoError(t, err)
	got, err := json.MarshalIndent(r, "", "  ")
	require.NoError(t, err)
	golden := filepath.Join("testdata", "container.json")
	if *update {
		require.NoError(t, os.WriteFile(golden, append(got, '\n'), 0o644))
	}
	want, err := os.ReadFile(golden)
	require.NoError(t, err)
	require.Equal(t, string(want), string(got)+"\n")
	require.NotContains(t, string(got), "s3cret", "the configuration must not show the token")
}

func TestReservedLeavesExactlyThePoolAllocatable(t *testing.T) {
	t.Parallel()
	reserved, err := testHost.reserved(spec())
	require.NoError(t, err)
	require.Equal(t, "cpu=2500m,memory=7516196864", reserved)

	whole := spec()
	whole.CPUMilli, whole.MemoryBytes = 4000, testHost.memoryBytes
	reserved, err = testHost.reserved(whole)
	require.NoError(t, err)
	require.Equal(t, "cpu=0m,memory=0", reserved)
}

func TestPoolLargerThanTheHostIsRefusedWithBothFigures(t *testing.T) {
	t.Parallel()
	big := spec()
	big.CPUMilli = 4001
	_, err := testHost.reserved(big)
	require.ErrorIs(t, err, provider.ErrRefused)
	require.ErrorContains(t, err, "pool small wants 4001m of CPU for a node, host pi4 has 4000m")

	big = spec()
	big.MemoryBytes = 9 << 30
	_, err = testHost.reserved(big)
	require.ErrorIs(t, err, provider.ErrRefused)
	require.ErrorContains(t, err, "wants 9216Mi of memory for a node, host pi4 has 8192Mi")
}

func TestLimitsOfTheContainer(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		limits   Limits
		memory   int64 // of the spec, 0: 1 GiB
		nano     int64
		bytes    int64
		refusal  string
		wantFail bool
	}{
		"follow the pool and leave room for the agent": {nano: 1_500_000_000, bytes: 1<<30 + AgentMemoryBytes},
		"never exceed the host":                        {memory: 8 << 30, nano: 1_500_000_000, bytes: testHost.memoryBytes},
		"may be absent":                                {limits: Limits{CPUMilli: Unlimited, MemoryBytes: Unlimited}},
		"may be wider":                                 {limits: Limits{CPUMilli: 3000, MemoryBytes: 2 << 30}, nano: 3_000_000_000, bytes: 2 << 30},
		"are refused below the pool's CPU":             {limits: Limits{CPUMilli: 1000}, wantFail: true, refusal: "CPU limit 1000m is below the 1500m"},
		"are refused below the pool's memory":          {limits: Limits{MemoryBytes: 1 << 20}, wantFail: true, refusal: "memory limit 1Mi is below the 1024Mi"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := spec()
			if tc.memory > 0 {
				s.MemoryBytes = tc.memory
			}
			nano, bytes, err := testHost.limits(tc.limits, s)
			if tc.wantFail {
				require.ErrorIs(t, err, provider.ErrRefused)
				require.ErrorContains(t, err, tc.refusal)
				return
			}
			require.NoError(t, err)
			require.Equal(t, tc.nano, nano)
			require.Equal(t, tc.bytes, bytes)
		})
	}
}

func TestImageIsNeverNewerThanTheServer(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		image, server, repository string
		unversioned               bool
		want, refusal             string
	}{
		"auto follows the server":               {image: "auto", server: "v1.34.4+k3s1", want: "rancher/k3s:v1.34.4-k3s1"},
		"auto follows a release candidate":      {image: "auto", server: "v1.34.4-rc1+k3s1", want: "rancher/k3s:v1.34.4-rc1-k3s1"},
		"auto uses a mirror":                    {image: "auto", server: "v1.34.4+k3s1", repository: "mirror.lan:5000/k3s", want: "mirror.lan:5000/k3s:v1.34.4-k3s1"},
		"auto needs a k3s server":               {image: "auto", server: "v1.34.4", refusal: "has no k3s revision"},
		"auto refuses what is no version":       {image: "auto", server: "devel", refusal: "is not a k3s version"},
		"the same version":                      {image: "rancher/k3s:v1.34.4-k3s1", server: "v1.34.4+k3s1", want: "rancher/k3s:v1.34.4-k3s1"},
		"an older patch":                        {image: "rancher/k3s:v1.34.3-k3s9", server: "v1.34.4+k3s1", want: "rancher/k3s:v1.34.3-k3s9"},
		"a tag with an architecture":            {image: "rancher/k3s:v1.34.4-k3s1-arm64", server: "v1.34.4+k3s1", want: "rancher/k3s:v1.34.4-k3s1-arm64"},
		"a candidate of the server's release":   {image: "rancher/k3s:v1.34.4-rc2-k3s1", server: "v1.34.4+k3s1", want: "rancher/k3s:v1.34.4-rc2-k3s1"},
		"a server without a revision":           {image: "rancher/k3s:v1.34.4-k3s7", server: "v1.34.4", want: "rancher/k3s:v1.34.4-k3s7"},
		"three minor versions older":            {image: "rancher/k3s:v1.31.0-k3s1", server: "v1.34.4+k3s1", want: "rancher/k3s:v1.31.0-k3s1"},
		"a tag and a digest":                    {image: "rancher/k3s:v1.34.4-k3s1@sha256:" + strings.Repeat("a", 64), server: "v1.34.4+k3s1", want: "rancher/k3s:v1.34.4-k3s1@sha256:" + strings.Repeat("a", 64)},
		"four minor versions older is refused":  {image: "rancher/k3s:v1.30.9-k3s1", server: "v1.34.4+k3s1", refusal: "more than 3 minor versions older than the server (v1.34.4+k3s1)"},
		"a newer k3s revision is refused":       {image: "rancher/k3s:v1.34.4-k3s2", server: "v1.34.4+k3s1", refusal: "rancher/k3s:v1.34.4-k3s2 is newer than the server (v1.34.4+k3s1)"},
		"a newer patch is refused":              {image: "rancher/k3s:v1.34.10-k3s1", server: "v1.34.9+k3s1", refusal: "is newer"},
		"a newer minor is refused":              {image: "rancher/k3s:v1.35.0-k3s1", server: "v1.34.4+k3s1", refusal: "is newer"},
		"a release after the server's is newer": {image: "rancher/k3s:v1.34.4-k3s1", server: "v1.34.4-rc1+k3s1", refusal: "is newer"},
		"latest is refused":                     {image: "rancher/k3s:latest", server: "v1.34.4+k3s1", refusal: "is not a k3s version"},
		"no tag is refused":                     {image: "rancher/k3s", server: "v1.34.4+k3s1", refusal: "is not a k3s version"},
		"latest may be allowed":                 {image: "my/k3s:latest", server: "v1.34.4+k3s1", unversioned: true, want: "my/k3s:latest"},
		"allowed needs no server":               {image: "my/k3s", unversioned: true, want: "my/k3s"},
		"allowed does not allow newer ones":     {image: "rancher/k3s:v1.35.0-k3s1", server: "v1.34.4+k3s1", unversioned: true, refusal: "is newer"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := options(t)
			o.Image, o.Repository, o.AllowUnversionedImage = tc.image, tc.repository, tc.unversioned
			got, err := o.withDefaults().image(tc.server)
			if tc.refusal != "" {
				require.ErrorIs(t, err, provider.ErrRefused)
				require.ErrorContains(t, err, tc.refusal)
				return
			}
			require.NoError(t, err)
			require.Equal(t, tc.want, got)
		})
	}
}

func TestUnknownServerVersionIsNoRefusal(t *testing.T) {
	t.Parallel()
	_, err := options(t).withDefaults().image("")
	require.ErrorIs(t, err, errServerVersionUnknown)
	require.NotErrorIs(t, err, provider.ErrRefused)
}

func TestTokenFileIsReadStrictlyAndNeverQuoted(t *testing.T) {
	t.Parallel()
	token, err := readToken(writeToken(t, "  "+testToken+"\n"))
	require.NoError(t, err)
	require.Equal(t, testToken, token)

	for name, tc := range map[string]struct{ content, problem string }{
		"empty":     {" \n", "is empty"},
		"two words": {"s3cret other", "more than one word"},
		"two lines": {"s3cret\nother", "more than one word"},
		"huge":      {strings.Repeat("s3cret", 1000), "longer than"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := readToken(writeToken(t, tc.content))
			require.ErrorContains(t, err, tc.problem)
			require.NotContains(t, err.Error(), "s3cret")
		})
	}
	_, err = readToken(filepath.Join(t.TempDir(), "absent"))
	require.ErrorIs(t, err, os.ErrNotExist)
	_, err = readToken("")
	require.ErrorContains(t, err, "not set")
}

func TestTokenArchiveHoldsAFileForRootAlone(t *testing.T) {
	t.Parallel()
	archive, err := files{token: testToken}.archive(time.Unix(0, 0))
	require.NoError(t, err)
	r := tar.NewReader(bytes.NewReader(archive))
	dir, err := r.Next()
	require.NoError(t, err)
	require.Equal(t, "etc/k3s-autoscaler/", dir.Name)
	require.EqualValues(t, 0o700, dir.Mode)
	file, err := r.Next()
	require.NoError(t, err)
	require.Equal(t, "etc/k3s-autoscaler/token", file.Name)
	require.EqualValues(t, 0o400, file.Mode)
	require.Zero(t, file.Uid)
	_, err = r.Next()
	require.ErrorIs(t, err, io.EOF)

	back, err := tokenFromArchive(bytes.NewReader(archive))
	require.NoError(t, err)
	require.Equal(t, testToken, back)
	_, err = tokenFromArchive(bytes.NewReader(nil))
	require.ErrorIs(t, err, io.EOF)
}

func TestRedactionTakesOutEveryFormOfTheToken(t *testing.T) {
	t.Parallel()
	const secret = "s3cret+join/token"
	basic := base64.StdEncoding.EncodeToString([]byte("node:" + secret))
	for name, line := range map[string]string{
		"whole":            `level=info msg="token ` + testToken + ` accepted"`,
		"secret part":      "password " + secret + " refused",
		"user and secret":  "login server:" + secret,
		"other user":       "https://node:" + secret + "@10.0.0.5:6443",
		"escaped":          "token=s3cret%2Bjoin%2Ftoken&x=1",
		"base 64":          "t=" + base64.StdEncoding.EncodeToString([]byte(testToken)),
		"basic":            "Authorization: Basic " + basic,
		"basic, bare":      "auth " + basic,
		"another token":    "K10" + strings.Repeat("f", 64) + "::server:s3cret+join/token-of-yesterday",
		"bearer":           "authorization: bearer s3cret+join/token-and-more",
		"a bootstrap form": "using abcdef.0123456789abcdef s3cret+join/token",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := newRedactor(testToken).redact(line)
			require.Contains(t, got, redacted)
			for _, leak := range []string{"s3cret", basic, "czNjcmV0", "0123456789abcdef"} {
				require.NotContains(t, got, leak)
			}
		})
	}
	require.Equal(t, "node is Ready at 10.0.0.5:6443", newRedactor(testToken, "").redact("node is Ready at 10.0.0.5:6443"))
}

func TestRedactionOfAShortToken(t *testing.T) {
	t.Parallel()
	require.Equal(t, "token [redacted] and [redacted]", newRedactor("s3cret").redact("token s3cret and node:s3cret"))
}

func TestLogsAreCutAtTheStartOfALine(t *testing.T) {
	t.Parallel()
	require.Equal(t, "", lastBytes("abc", 0))
	require.Equal(t, "abc", lastBytes("abc", 3))
	require.Equal(t, "three", lastBytes("one\ntwo\nthree", 7))
	require.Equal(t, "ree", lastBytes("one\ntwo\nthree", 3))
	require.Equal(t, "e", lastBytes("éé"+"e", 2), "half a character is no character")

	end := &tail{limit: 4}
	for _, part := range []string{"ab", "cdef", "ghijklmno", "p"} {
		_, err := end.Write([]byte(part))
		require.NoError(t, err)
	}
	require.Equal(t, "mnop", end.String())
}

func TestStateTellsCreatedFromExited(t *testing.T) {
	t.Parallel()
	const never, once = "0001-01-01T00:00:00Z", "2026-01-02T03:04:05Z"
	for want, states := range map[provider.State][]container.State{
		provider.Created: {{Status: "created", StartedAt: never}, {Status: "created", ExitCode: 128, StartedAt: never}},
		provider.Running: {{Running: true, StartedAt: once}, {Running: true, Paused: true, StartedAt: once}, {Restarting: true, StartedAt: once}},
		provider.Exited:  {{Status: "exited", StartedAt: once}, {Status: "dead", Dead: true, StartedAt: once}},
	} {
		for _, s := range states {
			require.Equal(t, want, stateOf(&s), "%+v", s)
		}
	}
}

func TestOptionsAreValidatedTogether(t *testing.T) {
	t.Parallel()
	require.NoError(t, options(t).Validate())

	bad := Options{
		Cluster: "Home", ServerURL: "http://x", TokenFile: "", Image: "rancher/k3s:latest",
		Hosts: []Host{
			{Name: "a", Address: "tcp://a:2376", TLS: TLS{CAFile: filepath.Join(t.TempDir(), "absent"), KeyFile: filepath.Join(t.TempDir(), "absent")}},
			{Name: "a", Address: "ssh://b", MaxNodes: -1}, {Name: "c", Address: "ftp://c"}, {Address: "unix:///d", SSH: SSH{KeyFile: "x"}},
			{Name: "e", Address: "ssh://me@e"},
		},
		Placement:       "anywhere",
		GPUs:            "some",
		Pull:            "sometimes",
		Env:             map[string]string{"K3S_TOKEN": "x"},
		Mounts:          []string{"relative:/x", "/a:/run/x", "/a:/etc/k3s-autoscaler:ro", "/etc/registries.yaml:/etc/rancher/k3s/registries.yaml:ro"},
		Limits:          Limits{CPUMilli: -2},
		StopGrace:       time.Millisecond,
		ContainerLabels: map[string]string{"k3s-autoscaler.dev/claim": "x"},
		Ulimits:         []Ulimit{{Name: "nofile", Soft: 2, Hard: 1}},
		ExtraArgs: []string{
			"--token=x", "--node-name", "x", "--kubelet-arg", "system-reserved=cpu=1", "--kubelet-arg=max-pods=5",
			"--kubelet-arg=eviction-hard=memory.available<100Mi", "--kubelet-arg=v=2", "--docker",
		},
	}
	err := bad.Validate()
	for _, want := range []string{
		`cluster: is "Home"`, `server URL: is "http://x"`, "token file: is not set", "image: the tag",
		"host a: tls: stat", `host a: "a" stands here twice`, `host a: address is "ssh://b", expected ssh://user@host`, "host a: max nodes is -1",
		`host c: address is "ftp://c"`, "host unix:///d: has no name", "host unix:///d: has settings of SSH",
		"host e: ssh: key file: is required", "known hosts file: is required", `placement: is "anywhere"`, `gpus: is "some"`,
		"tls: stat", "tls: expected both", "pull: is", "env: \"K3S_TOKEN\"", "mounts: is \"relative", "has /run for itself", "has /etc/k3s-autoscaler for itself", "limits: cpu: is -2", "stop grace: is 1ms", "container labels", "ulimits",
		"--token is set by", "--node-name is set by", "system-reserved is set by", "max-pods is set by", "memory.available",
	} {
		require.ErrorContains(t, err, want)
	}
	require.NotContains(t, err.Error(), "--docker")
	require.NotContains(t, err.Error(), "registries.yaml")

	_, err = New(bad)
	require.ErrorContains(t, err, "docker provider: ")

	o := options(t)
	o.Repository = "rancher/k3s:v1"
	require.ErrorContains(t, o.Validate(), "expected a name without a tag")
	o.Image = "UPPER:tag"
	require.ErrorContains(t, o.Validate(), "expected auto or a reference")
}

func TestOwnerNamesWhoHasTheName(t *testing.T) {
	t.Parallel()
	s := spec()
	labels := map[string]string{LabelCluster: s.Cluster, LabelPool: "renamed", LabelClaim: s.ClaimID, LabelEpoch: s.Epoch}
	c := container.InspectResponse{ContainerJSONBase: &container.ContainerJSONBase{ID: "0123456789abcdef"}, Config: &container.Config{Labels: labels}}
	require.NoError(t, owner(c, s))
	labels[LabelEpoch] = "epoch-0"
	err := owner(c, s)
	require.ErrorIs(t, err, provider.ErrNameTaken)
	require.ErrorContains(t, err, "container 0123456789ab belongs to cluster home, claim claim-1, epoch epoch-0")
	c.Config.Labels = nil
	require.ErrorContains(t, owner(c, s), "was not made by k3s-autoscaler")
	require.True(t, errors.Is(owner(c, s), provider.ErrNameTaken))
}
