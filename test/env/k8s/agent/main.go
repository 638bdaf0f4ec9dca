package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	_ "k8s.io/component-base/logs/json/register" // the kubelet configuration's defaults name it
	"k8s.io/component-base/version"
)

const passwordFile = "/etc/rancher/node/password"

func main() {
	os.Exit(run(os.Args[1:], os.Stdout))
}

func run(args []string, stdout io.Writer) int {
	if len(args) == 0 {
		fmt.Fprintln(stdout, "NAME:\n   k3s - stand-in for tests: agent, --version")
		return 0
	}
	switch args[0] {
	case "--version", "-v":
		fmt.Fprintln(stdout, versionText())
		return 0
	case "agent":
	default:
		logf("fatal", "%q is not a command of this stand-in; it has agent and --version", args[0])
		return 1
	}
	hostname, _ := os.Hostname()
	o, err := parseOptions(args[1:], os.Getenv, os.ReadFile, hostname)
	if err != nil {
		logf("fatal", "%v", err)
		return 1
	}
	// Exit at once, before any of the kubelet's clean-up: k3s, too, exits 0 on
	// SIGTERM and leaves its Node object behind.
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		logf("info", "Received %s, exiting", <-stop)
		os.Exit(0)
	}()
	if err := serve(context.Background(), o); err != nil {
		logf("fatal", "%v", err)
		return 1
	}
	return 0
}

func serve(ctx context.Context, o agentOptions) error {
	logf("info", "Starting k3s agent %s", version.Get().GitVersion)
	if o.failWith != "" {
		return fmt.Errorf("agent exits at once: %s", o.failWith)
	}
	if o.startDelay > 0 {
		logf("info", "Waiting %s before joining", o.startDelay)
		time.Sleep(o.startDelay)
	}
	caPEM, err := join(ctx, o, passwordFile)
	if err != nil {
		return err
	}
	logf("info", "Running kubelet --hostname-override=%s", o.nodeName)
	err = runKubelet(ctx, o, caPEM)
	if errors.Is(err, errRefused) {
		logf("error", "kubelet exited: %v", err)
		<-ctx.Done() // up, but never registered
		return ctx.Err()
	}
	return err
}

// versionText has the two lines of `k3s --version`.
func versionText() string {
	return fmt.Sprintf("k3s version %s (stand-in)\ngo version %s", version.Get().GitVersion, runtime.Version())
}
