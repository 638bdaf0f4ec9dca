package env

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

const (
	serviceRange = "10.96.0.0/16"
	loopback     = "127.0.0.1"
)

// controlPlane starts etcd and the three servers of Kubernetes on loopback.
type controlPlane struct {
	processes processes
	binaries  Binaries
	dir       string // of keys and certificates
	ports     controlPlanePorts
	gateway   net.IP // where nodes find the API server
	nodeGrace time.Duration
}

type controlPlanePorts struct{ EtcdClient, EtcdPeer, API, ControllerManager, Scheduler int }

// writeCredentials makes the keys, the certificates, the join token and the
// kubeconfigs of the servers and the admin. It returns the authority.
func (c controlPlane) writeCredentials(joinPassword string, adminKubeconfig string) (*authority, string, error) {
	ca, err := newAuthority()
	if err != nil {
		return nil, "", fmt.Errorf("make the certificate authority: %w", err)
	}
	token := ca.joinToken(joinPassword)
	caKey, err := encodeKey(ca.key)
	if err != nil {
		return nil, "", err
	}
	accounts, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, "", err
	}
	accountsKey, err := encodeKey(accounts)
	if err != nil {
		return nil, "", err
	}
	accountsDER, err := x509.MarshalPKIXPublicKey(accounts.Public())
	if err != nil {
		return nil, "", err
	}
	serving, servingKey, err := ca.sign(pkix.Name{CommonName: "kube-apiserver"},
		[]net.IP{net.ParseIP(loopback), c.gateway, net.ParseIP("10.96.0.1")},
		[]string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"})
	if err != nil {
		return nil, "", err
	}
	if err := writeAll(c.dir, map[string][]byte{
		"ca.crt": ca.pem,
		"ca.key": caKey,
		// The chain includes the authority, so that an agent can compare it
		// with the hash in its token.
		"apiserver.crt": append(serving, ca.pem...),
		"apiserver.key": servingKey,
		"accounts.key":  accountsKey,
		"accounts.pub":  pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: accountsDER}),
		"tokens.csv":    fmt.Appendf(nil, "%s,k3s-join,k3s-join,\"system:bootstrappers\"\n", token),
	}); err != nil {
		return nil, "", err
	}
	for file, subject := range map[string]pkix.Name{
		adminKubeconfig:                         {CommonName: "testenv-admin", Organization: []string{"system:masters"}},
		c.file("controller-manager.kubeconfig"): {CommonName: "system:kube-controller-manager"},
		c.file("scheduler.kubeconfig"):          {CommonName: "system:kube-scheduler"},
	} {
		cert, key, err := ca.sign(subject, nil, nil)
		if err != nil {
			return nil, "", err
		}
		user := &clientcmdapi.AuthInfo{ClientCertificateData: cert, ClientKeyData: key}
		if err := writeKubeconfig(file, c.url(), ca.pem, user); err != nil {
			return nil, "", err
		}
	}
	return ca, token, nil
}

func (c controlPlane) file(name string) string { return filepath.Join(c.dir, name) }

func (c controlPlane) url() string { return "https://" + hostPort(loopback, c.ports.API) }

// start brings the four servers up and waits until each answers.
func (c controlPlane) start(ctx context.Context, log io.Writer) error {
	done := step(log, "control plane %s is up", kubernetesVersion)
	if err := c.startEtcd(ctx); err != nil {
		return err
	}
	if err := c.startAPIServer(ctx); err != nil {
		return err
	}
	if err := c.startControllers(ctx); err != nil {
		return err
	}
	done()
	return nil
}

func (c controlPlane) startEtcd(ctx context.Context) error {
	client := "http://" + hostPort(loopback, c.ports.EtcdClient)
	peer := "http://" + hostPort(loopback, c.ports.EtcdPeer)
	if err := c.processes.start("etcd", c.binaries["etcd"],
		"--name=testenv", "--data-dir="+filepath.Join(c.processes.stateDir, "etcd"),
		"--listen-client-urls="+client, "--advertise-client-urls="+client,
		"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer, "--initial-cluster=testenv="+peer,
		"--unsafe-no-fsync", // the data is thrown away with the environment
		"--logger=zap", "--log-level=warn"); err != nil {
		return err
	}
	return c.processes.waitFor(ctx, "etcd", 30*time.Second, func(ctx context.Context) error {
		return getOK(ctx, http.DefaultClient, client+"/health")
	})
}

func (c controlPlane) startAPIServer(ctx context.Context) error {
	if err := c.processes.start("kube-apiserver", c.binaries["kube-apiserver"],
		"--etcd-servers=http://"+hostPort(loopback, c.ports.EtcdClient),
		"--bind-address="+loopback, "--secure-port="+strconv.Itoa(c.ports.API),
		// The advertised address must not be loopback; nothing listens there
		// but the node door.
		"--advertise-address="+c.gateway.String(), "--endpoint-reconciler-type=none",
		"--tls-cert-file="+c.file("apiserver.crt"), "--tls-private-key-file="+c.file("apiserver.key"),
		"--client-ca-file="+c.file("ca.crt"), "--token-auth-file="+c.file("tokens.csv"), "--anonymous-auth=false",
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file="+c.file("accounts.pub"), "--service-account-signing-key-file="+c.file("accounts.key"),
		"--service-cluster-ip-range="+serviceRange, "--allow-privileged=true",
		"--shutdown-delay-duration=0s", "--profiling=false"); err != nil {
		return err
	}
	client, err := c.httpClient()
	if err != nil {
		return err
	}
	return c.processes.waitFor(ctx, "kube-apiserver", 90*time.Second, func(ctx context.Context) error {
		return getOK(ctx, client, c.url()+"/readyz")
	})
}

func (c controlPlane) startControllers(ctx context.Context) error {
	// The default client limits would delay a burst of pods by minutes.
	common := []string{
		"--bind-address=" + loopback, "--leader-elect=false", "--kube-api-qps=300", "--kube-api-burst=600",
		"--authorization-always-allow-paths=/healthz,/metrics", "--profiling=false",
	}
	managerArgs := append([]string{
		"--kubeconfig=" + c.file("controller-manager.kubeconfig"), "--secure-port=" + strconv.Itoa(c.ports.ControllerManager),
		"--use-service-account-credentials=true", "--service-account-private-key-file=" + c.file("accounts.key"),
		"--root-ca-file=" + c.file("ca.crt"),
		"--cluster-signing-cert-file=" + c.file("ca.crt"), "--cluster-signing-key-file=" + c.file("ca.key"),
		"--cluster-signing-duration=24h",
		"--node-monitor-grace-period=" + c.nodeGrace.String(), "--node-monitor-period=1s",
		// A claim that met its volume too early waits for the next round: 15 s by default.
		"--pvclaimbinder-sync-period=1s",
	}, common...)
	if err := c.processes.start("kube-controller-manager", c.binaries["kube-controller-manager"], managerArgs...); err != nil {
		return err
	}
	schedulerArgs := append([]string{
		"--kubeconfig=" + c.file("scheduler.kubeconfig"), "--secure-port=" + strconv.Itoa(c.ports.Scheduler),
	}, common...)
	if err := c.processes.start("kube-scheduler", c.binaries["kube-scheduler"], schedulerArgs...); err != nil {
		return err
	}
	// Both serve with a certificate that they make themselves at start.
	insecure := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}} //nolint:gosec // loopback health check
	for name, port := range map[string]int{"kube-controller-manager": c.ports.ControllerManager, "kube-scheduler": c.ports.Scheduler} {
		if err := c.processes.waitFor(ctx, name, 60*time.Second, func(ctx context.Context) error {
			return getOK(ctx, insecure, "https://"+hostPort(loopback, port)+"/healthz")
		}); err != nil {
			return err
		}
	}
	return nil
}

// httpClient speaks to the API server as the controller manager, which may read
// /readyz; anonymous requests are refused.
func (c controlPlane) httpClient() (*http.Client, error) {
	config, err := clientcmd.BuildConfigFromFlags("", c.file("controller-manager.kubeconfig"))
	if err != nil {
		return nil, err
	}
	cert, err := tls.X509KeyPair(config.CertData, config.KeyData)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(config.CAData)
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{
		RootCAs: roots, Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12,
	}}}, nil
}

func writeKubeconfig(file, server string, caPEM []byte, user *clientcmdapi.AuthInfo) error {
	config := clientcmdapi.NewConfig()
	config.Clusters["testenv"] = &clientcmdapi.Cluster{Server: server, CertificateAuthorityData: caPEM}
	config.AuthInfos["testenv"] = user
	config.Contexts["testenv"] = &clientcmdapi.Context{Cluster: "testenv", AuthInfo: "testenv"}
	config.CurrentContext = "testenv"
	if err := clientcmd.WriteToFile(*config, file); err != nil {
		return fmt.Errorf("write kubeconfig: %w", err)
	}
	return nil
}

func getOK(ctx context.Context, client *http.Client, url string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	_, _ = io.Copy(io.Discard, response.Body)
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s", url, response.Status)
	}
	return nil
}

func hostPort(host string, port int) string { return net.JoinHostPort(host, strconv.Itoa(port)) }
