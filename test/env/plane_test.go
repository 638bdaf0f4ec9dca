package env

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestControlPlanesThatNobodyUsesAreEnded(t *testing.T) {
	t.Parallel()
	opts := options(t)
	take := func() (string, *os.File) {
		dir, lock, err := takePlane(opts)
		require.NoError(t, err)
		require.NoError(t, makeStateDir(dir))
		require.NoError(t, processes{stateDir: dir}.start("server", "sleep", "1000"))
		return dir, lock
	}
	first, crashes := take()
	second, lives := take()
	require.NotEqual(t, first, second, "each has one user")
	defer unlockFile(lives)

	unlockFile(crashes) // as the kernel does when the process ends
	require.NoError(t, Stop(t.Context(), opts))
	require.NoDirExists(t, first)
	require.Empty(t, processes{stateDir: first}.marked())
	require.DirExists(t, second, "it is in use")
	require.NotEmpty(t, processes{stateDir: second}.marked())

	unlockFile(lives)
	again, lock := take()
	require.Equal(t, first, again)
	unlockFile(lock)
	require.NoError(t, Stop(t.Context(), opts))
	require.NoDirExists(t, second)
}
