package env

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/test/freeport"
)

// noGateway is an address that nobody has (RFC 5737): an API server has to
// advertise one that is not loopback, whether anybody asks for it or not.
var noGateway = net.IPv4(192, 0, 2, 1)

// Plane is a control plane by itself: etcd, an API server, controllers and a
// scheduler, but nothing that makes nodes. Tests that bring nodes as objects need
// no more, and may run several side by side. A node stays Ready without renewing
// its lease.
type Plane struct {
	// AdminKubeconfig may do all.
	AdminKubeconfig string
	// SchedulerURL serves the scheduler's /metrics to everybody, with a
	// certificate that it made itself.
	SchedulerURL string

	processes processes
	lock      *os.File // held while this process uses the folder
}

// StartPlane starts a control plane beside the state folder of the options. What a
// crashed run left there is removed first. It may be called several times.
func StartPlane(ctx context.Context, opts Options) (*Plane, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	opts.RealK3s = false // it has its scheduler inside, and shows nobody its queue
	binaries, err := Build(ctx, opts)
	if err != nil {
		return nil, err
	}
	dir, lock, err := takePlane(opts)
	if err != nil {
		return nil, err
	}
	p := &Plane{AdminKubeconfig: filepath.Join(dir, "admin.kubeconfig"), processes: processes{stateDir: dir}, lock: lock}
	if err := p.start(ctx, opts, binaries); err != nil {
		return nil, errors.Join(err, p.Stop())
	}
	return p, nil
}

func (p *Plane) start(ctx context.Context, opts Options, binaries Binaries) error {
	if err := makeStateDir(p.processes.stateDir); err != nil {
		return err
	}
	ports, err := freeport.Take(5)
	if err != nil {
		return err
	}
	plane := controlPlane{
		processes: p.processes, binaries: binaries, dir: filepath.Join(p.processes.stateDir, "pki"),
		ports:   controlPlanePorts{EtcdClient: ports[0], EtcdPeer: ports[1], API: ports[2], ControllerManager: ports[3], Scheduler: ports[4]},
		gateway: noGateway, nodeGrace: 24 * time.Hour,
	}
	if _, _, err := plane.writeCredentials(randomPassword(), p.AdminKubeconfig); err != nil {
		return err
	}
	p.SchedulerURL = "https://" + hostPort(loopback, plane.ports.Scheduler)
	return plane.start(ctx, opts.Log)
}

// Stop ends the control plane and removes its folder.
func (p *Plane) Stop() error {
	defer unlockFile(p.lock)
	return removePlane(p.processes.stateDir)
}

const (
	planeSuffix = "-plane-"
	maxPlanes   = 64
)

// takePlane makes this process the user of the first folder that has none, and
// empties it.
func takePlane(opts Options) (dir string, lock *os.File, err error) {
	if err := os.MkdirAll(opts.CacheDir, 0o755); err != nil { //nolint:gosec // binaries are no secret
		return "", nil, err
	}
	for i := range maxPlanes {
		dir := opts.StateDir + planeSuffix + strconv.Itoa(i)
		lock, free, err := tryLock(opts.of(dir).usersFile())
		switch {
		case err != nil:
			return "", nil, err
		case !free:
			continue
		}
		if err := removePlane(dir); err != nil {
			unlockFile(lock)
			return "", nil, fmt.Errorf("remove what an earlier run left in %s: %w", dir, err)
		}
		return dir, lock, nil
	}
	return "", nil, fmt.Errorf("%d control planes beside %s are in use", maxPlanes, opts.StateDir)
}

// of are the options with another state folder.
func (o Options) of(dir string) Options {
	o.StateDir = dir
	return o
}

func removePlane(dir string) error {
	if err := (processes{stateDir: dir}).endMarked(); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

// endPlanes ends the control planes beside the state folder whose user has crashed.
func endPlanes(opts Options) error {
	dirs, err := filepath.Glob(opts.StateDir + planeSuffix + "*")
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range dirs {
		lock, free, err := tryLock(opts.of(dir).usersFile())
		if free {
			err = removePlane(dir)
			unlockFile(lock)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
