//go:build unix

package chaos

import (
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/k3s-autoscaler/k3s-autoscaler/test/freeport"
)

// serverSpec is what a server process is told.
type serverSpec struct {
	Name    string        `json:"name"`
	History string        `json:"history"`
	Dir     string        `json:"dir"`
	Port    int           `json:"port"`
	AckWait time.Duration `json:"ack_wait"`
	// ClusterPort and Routes are set for a server of a cluster.
	ClusterPort int      `json:"cluster_port"`
	Routes      []string `json:"routes"`
}

// clusterServers is how many servers a cluster has.
const clusterServers = 3

// serverSpecs are the servers of a topology.
func serverSpecs(topology Topology, dir string, ackWait time.Duration) ([]serverSpec, error) {
	n := 1
	if topology == Cluster {
		n = clusterServers
	}
	ports, err := freeport.Take(2 * n)
	if err != nil {
		return nil, err
	}
	out := make([]serverSpec, n)
	for i := range out {
		name := "s" + strconv.Itoa(i)
		out[i] = serverSpec{Name: name, History: historyPath(dir), Dir: filepath.Join(dir, name), Port: ports[i], AckWait: ackWait}
	}
	if topology == Cluster {
		for i := range out {
			out[i].ClusterPort = ports[n+i]
			for j := range out {
				if j != i {
					out[i].Routes = append(out[i].Routes, "nats://127.0.0.1:"+strconv.Itoa(ports[n+j]))
				}
			}
		}
	}
	return out, nil
}

// DataDir is where the server of a run in dir has its data, if it is but one.
func DataDir(dir string) string { return filepath.Join(dir, "s0") }

// runServer is a server as an operator would run it, until standard input ends.
func runServer(spec serverSpec) error {
	log, err := OpenLog(spec.History, spec.Name)
	if err != nil {
		return err
	}
	o := &server.Options{
		ServerName: spec.Name, Host: "127.0.0.1", Port: spec.Port, JetStream: true, StoreDir: spec.Dir, NoSigs: true, NoLog: true,
	}
	if spec.ClusterPort > 0 {
		o.Cluster = server.ClusterOpts{Name: "chaos", Host: "127.0.0.1", Port: spec.ClusterPort}
		for _, r := range spec.Routes {
			u, err := url.Parse(r)
			if err != nil {
				return fmt.Errorf("route: %w", err)
			}
			o.Routes = append(o.Routes, u)
		}
	}
	s, err := server.NewServer(o)
	if err != nil {
		return fmt.Errorf("server: %w", err)
	}
	s.Start()
	if !s.ReadyForConnections(time.Minute) {
		return fmt.Errorf("server %s on port %d is not ready", spec.Name, spec.Port)
	}
	watchPauses(log, spec.AckWait, true)
	_, err = io.Copy(io.Discard, os.Stdin) // the parent holds the other end
	s.Shutdown()
	s.WaitForShutdown()
	return err
}
