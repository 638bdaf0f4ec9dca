package env

import (
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"

	"github.com/k3s-autoscaler/k3s-autoscaler/test/freeport"
)

func options(t *testing.T) Options {
	t.Helper()
	dir, err := os.MkdirTemp("", "testenv-") // t.TempDir is too long for sockets
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	opts, err := Options{StateDir: filepath.Join(dir, "state"), CacheDir: filepath.Join(dir, "cache"), Log: io.Discard}.withDefaults()
	require.NoError(t, err)
	return opts
}

func TestOptionsFindTheRepositoryAndRefuseALongStateFolder(t *testing.T) {
	t.Parallel()
	opts := options(t)
	require.FileExists(t, filepath.Join(opts.RepositoryDir, "test", "env", "options.go"))
	require.Equal(t, 20*time.Second, opts.NodeGrace)

	_, err := Options{StateDir: "/" + strings.Repeat("x", maxStateDir)}.withDefaults()
	require.ErrorContains(t, err, "choose a shorter one")
}

func TestTheKeyOfABuildChangesWithAllThatDecidesTheBinary(t *testing.T) {
	t.Parallel()
	set := buildSet{name: "s", sources: []string{"go.mod", "go.sum", "agent"}, ldflags: "-s", programs: []program{{"p", "./agent"}}}
	files := func(changes ...string) fstest.MapFS {
		all := fstest.MapFS{
			"go.mod": {Data: []byte("module m")}, "go.sum": {Data: []byte("sum")},
			"agent/main.go": {Data: []byte("package main")}, "agent/main_test.go": {Data: []byte("test")}, "other/x.go": {Data: []byte("x")},
		}
		for _, name := range changes {
			all[name] = &fstest.MapFile{Data: []byte("changed")}
		}
		return all
	}
	key := func(s buildSet, files fstest.MapFS, toolchain string) string {
		got, err := s.key(files, toolchain)
		require.NoError(t, err)
		require.Len(t, got, 16)
		return got
	}
	base := key(set, files(), "go1.26.0")
	require.Equal(t, base, key(set, files(), "go1.26.0"))
	require.Equal(t, base, key(set, files("agent/main_test.go", "other/x.go"), "go1.26.0"), "what is not built does not count")

	flags, programs := set, set
	flags.ldflags = "-w"
	programs.programs = []program{{"p", "./other"}}
	for what, other := range map[string]string{
		"go.mod": key(set, files("go.mod"), "go1.26.0"), "go.sum": key(set, files("go.sum"), "go1.26.0"),
		"a source": key(set, files("agent/main.go"), "go1.26.0"), "a new source": key(set, files("agent/new.go"), "go1.26.0"),
		"the toolchain": key(set, files(), "go1.26.1"), "the flags": key(flags, files(), "go1.26.0"), "the programs": key(programs, files(), "go1.26.0"),
	} {
		require.NotEqual(t, base, other, what)
	}

	withoutSums := files()
	delete(withoutSums, "go.sum")
	require.NotEqual(t, base, key(set, withoutSums, "go1.26.0"))
	_, err := set.key(fstest.MapFS{}, "go1.26.0")
	require.Error(t, err, "no go.mod")
}

func TestABuildIsFoundInTheCacheAndAFailedOneLeavesNothing(t *testing.T) {
	t.Parallel()
	opts := options(t)
	toolchain, err := toolchainVersion(t.Context())
	require.NoError(t, err)
	set := buildSets()[3]
	require.Equal(t, "runcshim", set.name)

	dir, err := set.build(t.Context(), opts, toolchain)
	require.NoError(t, err)
	require.FileExists(t, filepath.Join(dir, "runcshim"))
	before, err := os.Stat(filepath.Join(dir, "runcshim"))
	require.NoError(t, err)
	again, err := set.build(t.Context(), opts, toolchain)
	require.NoError(t, err)
	require.Equal(t, dir, again)
	after, err := os.Stat(filepath.Join(dir, "runcshim"))
	require.NoError(t, err)
	require.True(t, os.SameFile(before, after))

	old, kept, foreign := filepath.Join(opts.CacheDir, "runcshim-old"), filepath.Join(opts.CacheDir, "runcshim-kept"), filepath.Join(opts.CacheDir, "tools-old")
	for _, other := range []string{old, kept, foreign} {
		require.NoError(t, os.Mkdir(other, 0o700))
		if other != kept {
			long := time.Now().Add(-keepUnused - time.Hour)
			require.NoError(t, os.Chtimes(other, long, long))
		}
	}
	require.NoError(t, set.prune(opts.CacheDir))
	require.NoDirExists(t, old)
	require.DirExists(t, kept)
	require.DirExists(t, foreign, "another set's")
	require.DirExists(t, dir)

	set.programs = []program{{"nothing", "./missing"}}
	_, err = set.build(t.Context(), opts, toolchain)
	require.ErrorContains(t, err, "nothing: go build ./missing")
	entries, err := os.ReadDir(opts.CacheDir)
	require.NoError(t, err)
	for _, entry := range entries {
		require.NotContains(t, entry.Name(), ".building-")
	}
}

func TestAProcessIsFoundAndEndedByItsRecord(t *testing.T) {
	t.Parallel()
	opts := options(t)
	p := processes{stateDir: opts.StateDir}
	require.NoError(t, p.start("sleeper", "sleep", "300"))
	require.True(t, p.alive("sleeper"))
	all, err := p.list()
	require.NoError(t, err)
	require.Len(t, all, 1)
	require.Equal(t, "sleeper", all[0].Name)

	reused := all[0]
	reused.Start--
	require.False(t, reused.alive(), "another program with the same pid")
	require.NoError(t, reused.end(0), "which is left alone")
	require.True(t, p.alive("sleeper"))

	marked := p.marked()
	require.Len(t, marked, 1)
	require.Equal(t, all[0].PID, marked[0].PID)

	require.NoError(t, p.stop("sleeper", time.Second))
	require.False(t, p.alive("sleeper"))
	require.NoFileExists(t, p.recordFile("sleeper"))
	require.NoError(t, p.stop("sleeper", time.Second), "twice")
	require.Empty(t, p.marked())
}

// The kernel lays out a new program's environment after exec.Cmd.Start returns;
// without waiting for it, about one in a thousand starts was not found.
func TestAProcessIsMarkedAsSoonAsItIsStarted(t *testing.T) {
	t.Parallel()
	p := processes{stateDir: options(t).StateDir}
	for range 100 {
		require.NoError(t, p.start("sleeper", "sleep", "300"))
		require.Len(t, p.marked(), 1)
		require.NoError(t, p.stop("sleeper", time.Second))
	}
}

func TestAProcessThatIgnoresSIGTERMIsKilled(t *testing.T) {
	t.Parallel()
	p := processes{stateDir: options(t).StateDir}
	require.NoError(t, p.start("stubborn", "sh", "-c", `trap "" TERM; echo ready; while :; do sleep 1; done`))
	require.Eventually(t, func() bool { return p.logTail("stubborn") != "" }, 10*time.Second, 10*time.Millisecond)
	require.NoError(t, p.stop("stubborn", 50*time.Millisecond))
	require.False(t, p.alive("stubborn"))
	require.NoError(t, endAll(p.marked()), "its child")
}

func TestWaitingEndsWithTheLogWhenTheProcessEnds(t *testing.T) {
	t.Parallel()
	p := processes{stateDir: options(t).StateDir}
	require.NoError(t, p.start("failing", "sh", "-c", "echo no such port; sleep 3; exit 3"))
	err := p.waitFor(t.Context(), "failing", time.Minute, func(context.Context) error { return os.ErrNotExist })
	require.ErrorContains(t, err, "failing ended")
	require.ErrorContains(t, err, "no such port")

	require.NoError(t, p.start("slow", "sleep", "300"))
	err = p.waitFor(t.Context(), "slow", 10*time.Millisecond, func(context.Context) error { return os.ErrNotExist })
	require.ErrorContains(t, err, "slow was not ready after 10ms")
	require.NoError(t, p.stop("slow", 0))
	require.Error(t, p.start("missing", "/no/such/program"))
}

func TestStartTimesAreReadFromStatAndAZombieIsDead(t *testing.T) {
	t.Parallel()
	fields := func(state string) string {
		return "12 (a) b (c) " + state + strings.Repeat(" 0", 18) + " 4711 0 0"
	}
	got, err := parseStartTime(fields("S"))
	require.NoError(t, err)
	require.Equal(t, uint64(4711), got)
	_, err = parseStartTime(fields("Z"))
	require.ErrorIs(t, err, errDead)
	for _, broken := range []string{"", "12 (a) S 1"} {
		_, err := parseStartTime(broken)
		require.Error(t, err)
	}
}

func TestDownIsIdempotentAndCleansUpAfterACrash(t *testing.T) {
	t.Parallel()
	opts := options(t)
	require.NoError(t, Stop(t.Context(), opts), "nothing is there")

	e := newEnv(opts)
	require.NoError(t, makeStateDir(e.StateDir))
	require.NoError(t, e.save())
	p := e.processes()
	require.NoError(t, p.start("etcd", "sleep", "300"))
	require.NoError(t, p.start("unrecorded", "sleep", "300"))
	require.NoError(t, os.Remove(p.recordFile("unrecorded")), "a crash before the record")
	require.NoError(t, os.WriteFile(p.recordFile("cut"), []byte(`{"na`), 0o600), "a crash while writing")

	_, err := Attach(t.Context(), opts)
	require.ErrorContains(t, err, "not complete")
	require.NoError(t, Stop(t.Context(), opts))
	require.Empty(t, p.marked())
	require.NoDirExists(t, opts.StateDir)
	require.NoError(t, Stop(t.Context(), opts))
	_, err = Attach(t.Context(), opts)
	require.ErrorContains(t, err, "no environment in")
}

func TestTheLastUserEndsTheEnvironment(t *testing.T) {
	t.Parallel()
	opts := options(t)
	require.NoError(t, os.MkdirAll(opts.CacheDir, 0o700))
	first := newEnv(opts)
	require.NoError(t, makeStateDir(first.StateDir))
	require.NoError(t, first.save())
	second := *first
	for _, user := range []*Env{first, &second} {
		using, err := shareFile(opts.usersFile())
		require.NoError(t, err)
		user.using = using
	}
	require.NoError(t, first.Release(t.Context()))
	require.DirExists(t, opts.StateDir, "it has another user")
	require.NoError(t, first.Release(t.Context()), "twice counts once")
	require.DirExists(t, opts.StateDir)
	require.NoError(t, second.Release(t.Context()))
	require.NoDirExists(t, opts.StateDir)
}

func TestAKeptEnvironmentOutlivesItsUsers(t *testing.T) {
	t.Parallel()
	opts := options(t)
	opts.Keep = true
	require.NoError(t, os.MkdirAll(opts.CacheDir, 0o700))
	e := newEnv(opts)
	require.NoError(t, makeStateDir(e.StateDir))
	require.NoError(t, e.save())
	using, err := shareFile(opts.usersFile())
	require.NoError(t, err)
	e.using = using
	require.NoError(t, e.Release(t.Context()))
	require.DirExists(t, opts.StateDir)
	require.NoError(t, e.Stop(t.Context()))
	require.NoDirExists(t, opts.StateDir)
}

func TestALockIsExclusiveAndEndsWithTheContext(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "lock")
	unlock, err := lockFile(t.Context(), file, func() { t.Error("nobody else has it") })
	require.NoError(t, err)

	ctx, cancel := context.WithCancel(t.Context())
	told := make(chan struct{})
	go func() { <-told; cancel() }()
	_, err = lockFile(ctx, file, func() { close(told) })
	require.ErrorIs(t, err, context.Canceled)

	unlock()
	unlock, err = lockFile(t.Context(), file, func() { t.Error("it is free") })
	require.NoError(t, err)
	unlock()
}

func TestFreeSubnetsAvoidThoseInUse(t *testing.T) {
	t.Parallel()
	all := freeSubnets(nil)
	require.Equal(t, netip.MustParsePrefix("172.31.252.0/22"), all[0])
	free := freeSubnets([]netip.Prefix{netip.MustParsePrefix("172.31.252.0/24"), netip.MustParsePrefix("172.31.240.0/21")})
	require.Equal(t, netip.MustParsePrefix("172.31.248.0/22"), free[0])
	require.Equal(t, netip.MustParsePrefix("172.31.236.0/22"), free[1])
	require.Empty(t, freeSubnets([]netip.Prefix{netip.MustParsePrefix("172.16.0.0/12")}))

	ports, err := freeport.Take(5)
	require.NoError(t, err)
	require.Len(t, ports, 5)
	seen := map[int]bool{}
	for _, port := range ports {
		seen[port] = true
	}
	require.Len(t, seen, 5)
}

func TestCredentialsPinTheAuthorityAndNameTheGateway(t *testing.T) {
	t.Parallel()
	opts := options(t)
	plane := controlPlane{dir: filepath.Join(opts.StateDir, "pki"), gateway: net.IPv4(172, 31, 252, 1), ports: controlPlanePorts{API: 6443}}
	admin := filepath.Join(opts.StateDir, "admin.kubeconfig")
	_, token, err := plane.writeCredentials("secret", admin)
	require.NoError(t, err)
	require.Regexp(t, `^K10[0-9a-f]{64}::server:secret$`, token)
	for _, name := range []string{"ca.key", "apiserver.key", "accounts.key", "tokens.csv", "scheduler.kubeconfig"} {
		info, err := os.Stat(plane.file(name))
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), info.Mode().Perm(), name)
	}
	serving, err := os.ReadFile(plane.file("apiserver.crt"))
	require.NoError(t, err)
	require.Equal(t, 2, strings.Count(string(serving), "BEGIN CERTIFICATE"), "the chain holds the authority")
	config, err := os.ReadFile(admin)
	require.NoError(t, err)
	require.Contains(t, string(config), "https://127.0.0.1:6443")
}

func TestOnlyAccessIsTakenFromManifestsInTheOrderOfUse(t *testing.T) {
	t.Parallel()
	objects, err := accessObjects([]byte(`# comment
kind: RoleBinding
apiVersion: rbac.authorization.k8s.io/v1
metadata: {name: b, namespace: ns}
---
kind: Deployment
apiVersion: apps/v1
metadata: {name: d}
---
---
kind: ServiceAccount
apiVersion: v1
metadata: {name: a, namespace: ns}
`), []byte("kind: Namespace\napiVersion: v1\nmetadata: {name: ns}\n"))
	require.NoError(t, err)
	var kinds []string
	for _, object := range objects {
		kinds = append(kinds, object.GetKind())
	}
	require.Equal(t, []string{"Namespace", "ServiceAccount", "RoleBinding"}, kinds)
	require.Equal(t, "ns", findAccount(objects, "a"))
	require.Empty(t, findAccount(objects, "b"))

	_, err = accessObjects([]byte("{"))
	require.Error(t, err)
}

func TestTheProductsManifestsDefineBothAccounts(t *testing.T) {
	t.Parallel()
	objects, err := productAccess(options(t).RepositoryDir)
	require.NoError(t, err)
	require.Equal(t, "k3s-autoscaler", findAccount(objects, readerAccount))
	require.Equal(t, "k3s-autoscaler", findAccount(objects, actorAccount))

	_, err = productAccess(t.TempDir())
	require.ErrorContains(t, err, "no service account "+readerAccount)
}

func TestMonitoringIsConfiguredForOneSecond(t *testing.T) {
	t.Parallel()
	opts := MonitoringOptions{
		RuleFiles: []string{"rules.yml"}, ScrapeTargets: map[string][]string{"app": {"127.0.0.1:9"}},
		WebhookURL: "http://127.0.0.1:8/v1/alerts", TokenFile: "token", MaxAlerts: 3, RepeatInterval: 90 * time.Second,
	}
	content, err := opts.prometheusConfig("127.0.0.1:7")
	require.NoError(t, err)
	var prometheus struct {
		Global        map[string]string `json:"global"`
		RuleFiles     []string          `json:"rule_files"`
		ScrapeConfigs []struct {
			Job string `json:"job_name"`
		} `json:"scrape_configs"`
	}
	require.NoError(t, yaml.Unmarshal(content, &prometheus))
	require.Equal(t, "1s", prometheus.Global["evaluation_interval"])
	require.True(t, filepath.IsAbs(prometheus.RuleFiles[0]))
	require.Equal(t, "app", prometheus.ScrapeConfigs[0].Job)
	require.Contains(t, string(content), "127.0.0.1:7")

	content, err = opts.alertmanagerConfig()
	require.NoError(t, err)
	for _, part := range []string{"url: http://127.0.0.1:8/v1/alerts", "max_alerts: 3", "type: Bearer", "/token", "group_wait: 1000ms", "repeat_interval: 90000ms", "- pool"} {
		require.Contains(t, string(content), part)
	}
	_, err = MonitoringOptions{}.alertmanagerConfig()
	require.ErrorContains(t, err, "WebhookURL")
}

func TestAnExporterServesWhatWasSet(t *testing.T) {
	t.Parallel()
	x, err := NewExporter()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, x.Close()) })
	x.Set("queue_depth", map[string]string{"queue": "a", "pool": "burst"}, 50)
	x.Set("queue_depth", map[string]string{"queue": "a", "pool": "burst"}, 51.5)
	x.Set("up_since", nil, 1)
	var out strings.Builder
	x.write(&out)
	require.Equal(t, "# TYPE queue_depth gauge\nqueue_depth{pool=\"burst\",queue=\"a\"} 51.5\n# TYPE up_since gauge\nup_since 1\n", out.String())
	x.Unset("queue_depth")
	out.Reset()
	x.write(&out)
	require.Equal(t, "# TYPE up_since gauge\nup_since 1\n", out.String())
	_, port, err := net.SplitHostPort(x.Address)
	require.NoError(t, err)
	number, err := strconv.Atoi(port)
	require.NoError(t, err)
	require.Positive(t, number)
}

func TestMissingCapabilitiesAreSeen(t *testing.T) {
	t.Parallel()
	lacks, err := lacksCapabilities("CapBnd:\t000001ffffffffff\n", "40\n")
	require.NoError(t, err)
	require.False(t, lacks)
	lacks, err = lacksCapabilities("CapBnd:\t000001fffeffffff\n", "40\n")
	require.NoError(t, err)
	require.True(t, lacks)
	_, err = lacksCapabilities("", "40\n")
	require.Error(t, err)
	_, err = lacksCapabilities("", "x")
	require.Error(t, err)
}

func TestTheEnginesVersionIsReadAndAnUnknownOneCountsAsNew(t *testing.T) {
	t.Parallel()
	require.Equal(t, 20, engineMajor("Docker version 20.10.24+dfsg1, build 5d6db84\n"))
	require.Equal(t, 28, engineMajor("Docker version 28.2.2, build e6534b4\n"))
	require.Greater(t, engineMajor("podman"), 100)
}

func TestMountsBelowAFolderAreFoundInTheOrderOfMounting(t *testing.T) {
	t.Parallel()
	require.Equal(t, []string{"/s/a", "/s/a/b c"},
		mountsBelow("proc /proc proc rw 0 0\nx /s/a overlay rw 0 0\nx /s/a/b\\040c tmpfs rw 0 0\nx /s2/a tmpfs rw 0 0\n\n", "/s"))
}

func TestATestWithoutDoorsIsToldSo(t *testing.T) {
	t.Parallel()
	require.ErrorIs(t, (&Env{}).CutNodes(t.Context()), ErrNoDoors)
	require.ErrorIs(t, (&Env{}).HealControl(t.Context()), ErrNoDoors)
}

func TestPackagesThatAreThereAreNotInstalled(t *testing.T) {
	t.Parallel()
	require.NoError(t, ensurePackages(t.Context(), io.Discard, map[string]string{"sh": "dash"}))
}

func TestExportsAreQuoted(t *testing.T) {
	t.Parallel()
	e := &Env{AdminKubeconfig: "/it's"}
	require.Equal(t, `export KUBECONFIG='/it'\''s'`, e.Exports()[0])
}
