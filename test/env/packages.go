package env

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
)

const policyFile = "/usr/sbin/policy-rc.d"

// ensurePackages installs the Debian packages of the programs that are not in
// PATH. programs maps a program to its package. Without root or on another
// distribution the error names the command to run.
func ensurePackages(ctx context.Context, log io.Writer, programs map[string]string) error {
	var packages []string
	for program, pkg := range programs {
		if _, err := exec.LookPath(program); err != nil && !slices.Contains(packages, pkg) {
			packages = append(packages, pkg)
		}
	}
	if len(packages) == 0 {
		return nil
	}
	slices.Sort(packages)
	names := strings.Join(packages, " ")
	if _, err := exec.LookPath("apt-get"); err != nil {
		return fmt.Errorf("%s not found, and this is not Debian: install what your distribution calls the packages %s", names, names)
	}
	if os.Getuid() != 0 {
		return fmt.Errorf("%s not found: run `sudo apt-get install --no-install-recommends %s`, or run the tests as root", names, names)
	}
	defer step(log, "installed %s", names)()
	fmt.Fprintf(log, "testenv: installing %s from the distribution\n", names)
	restore, err := keepServicesStopped()
	if err != nil {
		return err
	}
	defer restore()
	install := append([]string{"install", "-y", "--no-install-recommends"}, packages...)
	if err := apt(ctx, install...); err != nil {
		// The package lists may be missing or old.
		if err := apt(ctx, "update"); err != nil {
			return err
		}
		return apt(ctx, install...)
	}
	return nil
}

// keepServicesStopped keeps a package's own service from being started: the
// environment runs these programs itself, on other ports. A policy that the
// machine already has is left as it is.
func keepServicesStopped() (restore func(), err error) {
	file, err := os.OpenFile(policyFile, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755) //nolint:gosec // it is executed
	if errors.Is(err, os.ErrExist) {
		return func() {}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("keep services from starting: %w", err)
	}
	_, err = file.WriteString("#!/bin/sh\nexit 101\n")
	if err := errors.Join(err, file.Close()); err != nil {
		return nil, fmt.Errorf("keep services from starting: %w", err)
	}
	return func() { _ = os.Remove(policyFile) }, nil
}

func apt(ctx context.Context, args ...string) error {
	// A machine that has just booted may be busy with its own updates for minutes.
	args = append([]string{"-o", "DPkg::Lock::Timeout=300", "-o", "Acquire::Retries=3"}, args...)
	cmd := exec.CommandContext(ctx, "apt-get", args...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("apt-get %s: %w\n%s", strings.Join(args, " "), err, bytes.TrimSpace(tail(out, 2000)))
	}
	return nil
}
