//go:build !unix

package embedded

import (
	"fmt"
	"os"
)

// dirLock is a file that exists as long as the server runs. Unlike on Unix it
// survives a killed process and has to be removed by hand then.
type dirLock struct {
	f    *os.File
	path string
}

func lockDir(path string) (*dirLock, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if os.IsExist(err) {
		return nil, fmt.Errorf("%w: %s exists; remove it if no server runs", ErrInUse, path)
	}
	if err != nil {
		return nil, err
	}
	return &dirLock{f, path}, nil
}

func (l *dirLock) release() error {
	if err := l.f.Close(); err != nil {
		return err
	}
	return os.Remove(l.path)
}
