package main

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/pflag"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/kubernetes/pkg/util/taints"
)

// agentOptions is what an agent was told by flags and environment. Flags win over
// environment, as in k3s.
type agentOptions struct {
	server   string
	token    string
	nodeName string
	nodeIP   string
	labels   map[string]string
	taints   []v1.Taint
	kubelet  kubeletArgs

	// startDelay and failWith are faults baked into variants of the image
	// (STANDIN_START_DELAY, STANDIN_FAIL); real k3s has neither.
	startDelay time.Duration
	failWith   string
}

// parseOptions reads the arguments after `agent`. getenv and readFile are
// os.Getenv and os.ReadFile outside tests; hostname is the default node name.
func parseOptions(args []string, getenv func(string) string, readFile func(string) ([]byte, error), hostname string) (agentOptions, error) {
	var o agentOptions
	var labels, taintSpecs, kubeletArgs, ignored []string
	var tokenFile string

	flags := pflag.NewFlagSet("agent", pflag.ContinueOnError)
	flags.StringVarP(&o.server, "server", "s", getenv("K3S_URL"), "server to connect to [$K3S_URL]")
	flags.StringVarP(&o.token, "token", "t", getenv("K3S_TOKEN"), "token to join with [$K3S_TOKEN]")
	flags.StringVar(&tokenFile, "token-file", getenv("K3S_TOKEN_FILE"), "file that holds the token [$K3S_TOKEN_FILE]")
	flags.StringVar(&o.nodeName, "node-name", getenv("K3S_NODE_NAME"), "name of the node [$K3S_NODE_NAME]")
	flags.StringVarP(&o.nodeIP, "node-ip", "i", "", "address to advertise for the node")
	flags.StringArrayVar(&labels, "node-label", nil, "label to register with")
	flags.StringArrayVar(&taintSpecs, "node-taint", nil, "taint to register with")
	flags.StringArrayVar(&kubeletArgs, "kubelet-arg", nil, "argument for the kubelet")
	for _, name := range []string{"data-dir", "flannel-iface", "node-external-ip", "resolv-conf", "kube-proxy-arg", "log"} {
		flags.StringArrayVar(&ignored, name, nil, "accepted, without effect")
	}
	flags.Bool("debug", false, "accepted, without effect")
	flags.Bool("rootless", false, "accepted, without effect")
	if err := flags.Parse(args); err != nil {
		return agentOptions{}, err
	}

	var errs []error
	if o.nodeName == "" {
		o.nodeName = hostname
	}
	o.nodeName = strings.ToLower(o.nodeName)
	if problems := validation.IsDNS1123Subdomain(o.nodeName); len(problems) > 0 {
		errs = append(errs, fmt.Errorf("node name %q: %s", o.nodeName, strings.Join(problems, "; ")))
	}
	if o.server == "" {
		errs = append(errs, errors.New("--server is required"))
	} else if u, err := url.Parse(o.server); err != nil || u.Scheme != "https" || u.Host == "" {
		errs = append(errs, fmt.Errorf("--server %q is not an https URL", o.server))
	}
	// A token given directly wins; the file is read only when it is needed.
	if o.token == "" && tokenFile != "" {
		content, err := readFile(tokenFile)
		if err != nil {
			errs = append(errs, fmt.Errorf("read --token-file: %w", err))
		}
		o.token = strings.TrimSpace(string(content))
	}
	if o.token == "" {
		errs = append(errs, errors.New("--token is required"))
	}

	o.labels = map[string]string{"node.kubernetes.io/instance-type": "k3s"}
	for _, label := range labels {
		key, value, ok := strings.Cut(label, "=")
		if !ok {
			errs = append(errs, fmt.Errorf("--node-label %q is not key=value", label))
			continue
		}
		o.labels[key] = value
	}
	if len(taintSpecs) > 0 {
		add, remove, err := taints.ParseTaints(taintSpecs)
		if err == nil && len(remove) > 0 {
			err = errors.New("a taint cannot be removed at registration")
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("--node-taint: %w", err))
		}
		o.taints = add
	}
	var err error
	if o.kubelet, err = parseKubeletArgs(kubeletArgs); err != nil {
		errs = append(errs, err)
	}

	o.failWith = getenv("STANDIN_FAIL")
	if d := getenv("STANDIN_START_DELAY"); d != "" {
		if o.startDelay, err = time.ParseDuration(d); err != nil {
			errs = append(errs, fmt.Errorf("STANDIN_START_DELAY: %w", err))
		}
	}
	return o, errors.Join(errs...)
}

// logf writes a line as k3s does (logrus' text format), on standard error.
func logf(level, format string, args ...any) {
	fmt.Fprintf(os.Stderr, "time=%q level=%s msg=%q\n", time.Now().UTC().Format(time.RFC3339), level, fmt.Sprintf(format, args...))
}
