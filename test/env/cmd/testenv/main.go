// Command testenv runs the end-to-end tests' environment by hand:
//
//	eval "$(go run ./test/env/cmd/testenv up)"   # brings it up, or attaches
//	kubectl get nodes; docker ps
//	go run ./test/env/cmd/testenv down
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/k3s-autoscaler/k3s-autoscaler/test/env"
)

const usage = `usage: testenv [-dir FOLDER] COMMAND

  build    build the binaries, or find them in the cache
  up       bring the environment up and print exports for a shell
  status   say whether it is up (exit code 1 if not), with the exports
  down     end it, also what a crashed run left

K3S_AUTOSCALER_E2E_K3S=1 runs the true rancher/k3s in place of the stand-in.
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("testenv", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() { fmt.Fprint(stderr, usage) }
	dir := flags.String("dir", "", "state folder")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	if flags.NArg() != 1 {
		flags.Usage()
		return 2
	}
	opts := env.Options{StateDir: *dir, Keep: true, Log: stderr}
	var err error
	switch flags.Arg(0) {
	case "build":
		var binaries env.Binaries
		if binaries, err = env.Build(ctx, opts); err == nil {
			printBinaries(stdout, binaries)
		}
	case "up":
		err = show(stdout, func() (*env.Env, error) { return env.Start(ctx, opts) })
	case "status":
		err = show(stdout, func() (*env.Env, error) { return env.Attach(ctx, opts) })
	case "down":
		err = env.Stop(ctx, opts)
	default:
		flags.Usage()
		return 2
	}
	if err != nil {
		fmt.Fprintf(stderr, "testenv: %v\n", err)
		return 1
	}
	return 0
}

func printBinaries(w io.Writer, binaries env.Binaries) {
	var names []string
	for name := range binaries {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		fmt.Fprintf(w, "%s %s\n", name, binaries[name])
	}
}

func show(w io.Writer, get func() (*env.Env, error)) error {
	e, err := get()
	if err != nil {
		return err
	}
	for _, line := range e.Exports() {
		fmt.Fprintln(w, line)
	}
	return nil
}
