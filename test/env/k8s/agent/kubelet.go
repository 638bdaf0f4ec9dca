package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"go.opentelemetry.io/otel/trace/noop"
	"k8s.io/apimachinery/pkg/types"
	clientset "k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	remote "k8s.io/cri-client/pkg"
	fakeremote "k8s.io/cri-client/pkg/fake"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/cmd/kubelet/app/options"
	"k8s.io/kubernetes/pkg/kubelet/certificate/bootstrap"
	"k8s.io/kubernetes/pkg/kubelet/cm"
	"k8s.io/kubernetes/pkg/kubemark"
)

const (
	kubeletDir  = "/var/lib/kubelet"
	agentDir    = "/var/lib/rancher/k3s/agent"
	podLogsDir  = "/var/log/pods"
	kubeletPort = 10250

	runtimeTimeout = 15 * time.Second
)

// errRefused is returned for settings that the kubelet does not accept.
var errRefused = errors.New("failed to validate kubelet flags")

// runKubelet registers the node through the kubelet's TLS bootstrap and serves
// it until the process ends.
func runKubelet(ctx context.Context, o agentOptions, caPEM []byte) error {
	for _, dir := range []string{kubeletDir, agentDir, podLogsDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make the kubelet's folder: %w", err)
		}
	}
	machine, err := readHost(kubeletDir)
	if err != nil {
		return err
	}
	kubeconfig := filepath.Join(agentDir, "kubelet.kubeconfig")
	bootstrapConfig := filepath.Join(agentDir, "bootstrap.kubeconfig")
	if err := writeBootstrapConfig(bootstrapConfig, o.server, o.token, caPEM); err != nil {
		return fmt.Errorf("write the bootstrap kubeconfig: %w", err)
	}
	if err := bootstrap.LoadClientCert(ctx, kubeconfig, bootstrapConfig, filepath.Join(agentDir, "pki"), types.NodeName(o.nodeName)); err != nil {
		return fmt.Errorf("get a client certificate for the kubelet: %w", err)
	}

	flags, config := kubemark.GetHollowKubeletConfig(&kubemark.HollowKubeletOptions{
		NodeName:           o.nodeName,
		KubeletPort:        kubeletPort,
		MaxPods:            o.kubelet.maxPods,
		NodeLabels:         o.labels,
		RegisterWithTaints: o.taints,
	})
	// The kubelet checks its flags before kubemark comes in: a label that a
	// node may not give itself is refused.
	if err := options.ValidateKubeletFlags(flags); err != nil {
		return fmt.Errorf("%w: %w", errRefused, err)
	}
	flags.RootDirectory = kubeletDir
	flags.NodeIP = o.nodeIP
	config.PodLogsDir = podLogsDir
	// No static pods: watching for them would cost each agent an inotify
	// instance, of which a user has 128.
	config.StaticPodPath = ""
	config.ProviderID = "k3s://" + o.nodeName

	clientConfig, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return fmt.Errorf("read the kubelet's kubeconfig: %w", err)
	}
	clientConfig.QPS, clientConfig.Burst = 50, 100 // the kubelet's own defaults
	client, err := clientset.NewForConfig(clientConfig)
	if err != nil {
		return err
	}
	heartbeatConfig := *clientConfig
	heartbeatConfig.Timeout = config.NodeStatusUpdateFrequency.Duration
	heartbeatConfig.QPS = -1
	heartbeat, err := clientset.NewForConfig(&heartbeatConfig)
	if err != nil {
		return err
	}

	endpoint, err := fakeremote.GenerateEndpoint()
	if err != nil {
		return fmt.Errorf("choose the runtime's socket: %w", err)
	}
	runtime := fakeremote.NewFakeRemoteRuntime()
	if err := runtime.Start(endpoint); err != nil {
		return fmt.Errorf("start the container runtime: %w", err)
	}
	defer runtime.Stop()
	logger := klog.FromContext(ctx)
	runtimeService, err := remote.NewRemoteRuntimeService(endpoint, runtimeTimeout, noop.NewTracerProvider(), &logger)
	if err != nil {
		return fmt.Errorf("connect to the container runtime: %w", err)
	}

	hostMachine := &hostMachine{host: machine}
	hostMachine.NodeName = o.nodeName
	kubemark.NewHollowKubelet(flags, config, client, heartbeat, hostMachine, runtime.ImageService, runtimeService,
		&reservingManager{ContainerManager: cm.NewStubContainerManager(), host: machine, args: o.kubelet},
	).Run(ctx)
	return nil
}

func writeBootstrapConfig(file, server, token string, caPEM []byte) error {
	config := clientcmdapi.NewConfig()
	config.Clusters["k3s"] = &clientcmdapi.Cluster{Server: server, CertificateAuthorityData: caPEM}
	config.AuthInfos["join"] = &clientcmdapi.AuthInfo{Token: token}
	config.Contexts["k3s"] = &clientcmdapi.Context{Cluster: "k3s", AuthInfo: "join"}
	config.CurrentContext = "k3s"
	return clientcmd.WriteToFile(*config, file)
}
