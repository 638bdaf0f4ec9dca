package env

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

func stateFile(stateDir string) string { return filepath.Join(stateDir, "env.json") }

// lockState serialises Start and Stop on a state folder.
func lockState(ctx context.Context, opts Options) (func(), error) {
	if err := os.MkdirAll(opts.CacheDir, 0o755); err != nil { //nolint:gosec // binaries are no secret
		return nil, err
	}
	return lockFile(ctx, opts.stateLockFile(), func() {
		fmt.Fprintf(opts.Log, "testenv: waiting for another process that starts or stops %s\n", opts.StateDir)
	})
}

// attach succeeds only if all parts are alive and answer.
func attach(ctx context.Context, opts Options) (*Env, error) {
	e, err := load(opts)
	if err != nil {
		return nil, err
	}
	if e.RealK3s != opts.RealK3s {
		return nil, fmt.Errorf("the environment in %s is of another kind (real k3s: %t)", e.StateDir, e.RealK3s)
	}
	if e.ServerVersion == "" {
		return nil, fmt.Errorf("the environment in %s is not complete", e.StateDir)
	}
	all, err := e.processes().list()
	if err != nil {
		return nil, err
	}
	for _, p := range all {
		if !p.alive() {
			return nil, fmt.Errorf("%s of the environment in %s has ended", p.Name, e.StateDir)
		}
	}
	client, err := e.adminClient()
	if err != nil {
		return nil, err
	}
	if _, err := client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx); err != nil {
		return nil, fmt.Errorf("the API server of the environment in %s does not answer: %w", e.StateDir, err)
	}
	engine, err := openEngine(e.DockerHost, e.PrivateEngine)
	if err != nil {
		return nil, err
	}
	defer engine.close()
	return e, engine.answers(ctx)
}

func load(opts Options) (*Env, error) {
	content, err := os.ReadFile(stateFile(opts.StateDir))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("no environment in %s", opts.StateDir)
	}
	if err != nil {
		return nil, err
	}
	e := &Env{opts: opts}
	if err := json.Unmarshal(content, e); err != nil {
		return nil, fmt.Errorf("read %s: %w", stateFile(opts.StateDir), err)
	}
	return e, nil
}

// save replaces the state file in one step.
func (e *Env) save() error {
	content, err := json.MarshalIndent(e, "", "  ")
	if err != nil {
		return err
	}
	temporary := stateFile(e.StateDir) + ".new"
	if err := os.WriteFile(temporary, append(content, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(temporary, stateFile(e.StateDir))
}

// makeStateDir refuses a folder that another user could have made: its name in
// the folder for temporary files is known to all.
func makeStateDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !info.IsDir() || !ok || int(owner.Uid) != os.Getuid() {
		return fmt.Errorf("state folder %s is not a folder of this user", dir)
	}
	return os.Chmod(dir, 0o700) //nolint:gosec // a folder
}
