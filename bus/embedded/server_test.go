package embedded_test

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus/embedded"
)

func start(t *testing.T, o embedded.Options) *embedded.Server {
	t.Helper()
	s, err := embedded.Start(o)
	require.NoError(t, err)
	t.Cleanup(s.Shutdown)
	return s
}

func TestAServerWithoutListenerServesItsProcessOnly(t *testing.T) {
	t.Parallel()
	s := start(t, embedded.Options{Dir: t.TempDir()})
	require.Empty(t, s.URL())
	nc, err := s.Connect()
	require.NoError(t, err)
	defer nc.Close()
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	_, err = js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}})
	require.NoError(t, err)
	_, err = js.Publish(t.Context(), "s", []byte("x"))
	require.NoError(t, err)
}

func TestADirectoryHasOneServer(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := start(t, embedded.Options{Dir: dir})
	require.Equal(t, dir, s.Dir())
	_, err := embedded.Start(embedded.Options{Dir: dir})
	require.ErrorIs(t, err, embedded.ErrInUse)
	require.ErrorContains(t, err, dir)
	s.Shutdown()
	s.Shutdown()
	start(t, embedded.Options{Dir: dir})
}

func TestAListenerAsksForTheTokenOrPassword(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		o    embedded.Options
		auth nats.Option
	}{
		"token":    {embedded.Options{Token: "sesame"}, nats.Token("sesame")},
		"password": {embedded.Options{User: "ann", Password: "sesame"}, nats.UserInfo("ann", "sesame")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c.o.Dir, c.o.Listen = t.TempDir(), ":0"
			s := start(t, c.o)
			require.Contains(t, s.URL(), "127.0.0.1:")
			_, err := nats.Connect(s.URL(), nats.Timeout(5*time.Second))
			require.ErrorIs(t, err, nats.ErrAuthorization)
			nc, err := nats.Connect(s.URL(), c.auth)
			require.NoError(t, err)
			nc.Close()
			nc, err = s.Connect()
			require.NoError(t, err, "the process itself needs no secret")
			nc.Close()
		})
	}
}

func TestWrongOptionsAreRefused(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	for want, o := range map[string]embedded.Options{
		"dir: is empty":              {},
		"make data directory":        {Dir: filepath.Join(file, "below")},
		"expected host:port":         {Dir: "x", Listen: "nowhere"},
		"port is":                    {Dir: "x", Listen: "127.0.0.1:http"},
		"can be reached by others":   {Dir: "x", Listen: "0.0.0.0:0"},
		"can be reached by others, ": {Dir: "x", Listen: "[::]:0", User: "ann"},
	} {
		_, err := embedded.Start(o)
		require.ErrorContains(t, err, want)
	}
	require.NoDirExists(t, "x")
}

func TestAUsedPortIsReportedWithItsReason(t *testing.T) {
	t.Parallel()
	first := start(t, embedded.Options{Dir: t.TempDir(), Listen: "127.0.0.1:0"})
	var log bytes.Buffer
	dir := t.TempDir()
	_, err := embedded.Start(embedded.Options{Dir: dir, Listen: first.URL()[len("nats://"):], StartTimeout: 2 * time.Second,
		Logger: slog.New(slog.NewTextHandler(&log, nil))})
	require.ErrorContains(t, err, "address already in use")
	require.Contains(t, log.String(), "address already in use")
	start(t, embedded.Options{Dir: dir}) // the directory is free again
}
