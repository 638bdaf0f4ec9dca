package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	cadvisorapi "github.com/google/cadvisor/info/v1"
	cadvisorapiv2 "github.com/google/cadvisor/info/v2"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	cadvisortest "k8s.io/kubernetes/pkg/kubelet/cadvisor/testing"
	"k8s.io/kubernetes/pkg/kubelet/cm"
)

const defaultMaxPods = 110

// kubeletArgs is what the stand-in honours of --kubelet-arg.
type kubeletArgs struct {
	maxPods  int
	reserved v1.ResourceList // system-reserved + kube-reserved

	// evictionMemory and evictionStorage are the hard eviction thresholds of
	// memory.available and nodefs.available, which the kubelet keeps back from
	// allocatable. k3s itself sets only nodefs and imagefs, to 5 %.
	evictionMemory, evictionStorage threshold
}

// threshold is an amount of bytes, or a share of the capacity.
type threshold struct {
	bytes int64
	share float64
}

func (t threshold) of(capacity int64) int64 {
	if t.share > 0 {
		return int64(t.share * float64(capacity))
	}
	return t.bytes
}

// parseKubeletArgs takes key=value pairs; keys that have no effect on what the
// node reports are accepted and ignored.
func parseKubeletArgs(args []string) (kubeletArgs, error) {
	parsed := kubeletArgs{maxPods: defaultMaxPods, reserved: v1.ResourceList{}, evictionStorage: threshold{share: 0.05}}
	var errs []error
	for _, arg := range args {
		key, value, _ := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		var err error
		switch key {
		case "max-pods":
			parsed.maxPods, err = strconv.Atoi(value)
		case "system-reserved", "kube-reserved":
			err = addReserved(parsed.reserved, value)
		case "eviction-hard":
			parsed.evictionMemory, parsed.evictionStorage, err = parseEviction(value)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("--kubelet-arg %s: %w", arg, err))
		}
	}
	return parsed, errors.Join(errs...)
}

func addReserved(total v1.ResourceList, list string) error {
	for pair := range strings.SplitSeq(list, ",") {
		name, amount, ok := strings.Cut(strings.TrimSpace(pair), "=")
		if !ok {
			return fmt.Errorf("%q is not resource=quantity", pair)
		}
		quantity, err := resource.ParseQuantity(amount)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if quantity.Sign() < 0 {
			return fmt.Errorf("%s: %s is negative", name, amount)
		}
		sum := total[v1.ResourceName(name)]
		sum.Add(quantity)
		total[v1.ResourceName(name)] = sum
	}
	return nil
}

func parseEviction(list string) (memory, storage threshold, err error) {
	for pair := range strings.SplitSeq(list, ",") {
		signal, amount, ok := strings.Cut(strings.TrimSpace(pair), "<")
		if !ok {
			return memory, storage, fmt.Errorf("%q is not signal<amount", pair)
		}
		var t threshold
		if percent, isShare := strings.CutSuffix(amount, "%"); isShare {
			var number float64
			if number, err = strconv.ParseFloat(percent, 64); err == nil {
				t.share = number / 100
			}
		} else {
			var quantity resource.Quantity
			if quantity, err = resource.ParseQuantity(amount); err == nil {
				t.bytes = quantity.Value()
			}
		}
		if err != nil {
			return memory, storage, fmt.Errorf("%s: %w", signal, err)
		}
		switch signal {
		case "memory.available":
			memory = t
		case "nodefs.available":
			storage = t
		}
	}
	return memory, storage, nil
}

// host is a machine as a kubelet in a container finds it: /proc and /sys are
// not cut down to the container's limits, so it is the whole machine.
type host struct {
	cpus    int
	memory  int64 // bytes
	storage int64 // bytes, of the file system under the kubelet's folder
	kernel  string
	bootID  string
}

// readHost reads the machine from procfs and from the file system of dataDir.
func readHost(dataDir string) (host, error) {
	cpuinfo, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return host{}, fmt.Errorf("read processors: %w", err)
	}
	meminfo, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return host{}, fmt.Errorf("read memory: %w", err)
	}
	memory, err := memTotal(meminfo)
	if err != nil {
		return host{}, err
	}
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dataDir, &fs); err != nil {
		return host{}, fmt.Errorf("read the file system of %s: %w", dataDir, err)
	}
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	bootID, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return host{
		cpus:    processors(cpuinfo),
		memory:  memory,
		storage: int64(fs.Blocks) * fs.Bsize,
		kernel:  string(bytes.TrimSpace(kernel)),
		bootID:  string(bytes.TrimSpace(bootID)),
	}, nil
}

// processors counts the processors in /proc/cpuinfo, which is what cadvisor
// reports as the number of cores. runtime.NumCPU would be lowered by a cpuset.
func processors(cpuinfo []byte) int {
	n := 0
	for line := range bytes.Lines(cpuinfo) {
		if key, _, ok := bytes.Cut(line, []byte(":")); ok && string(bytes.TrimSpace(key)) == "processor" {
			n++
		}
	}
	return n
}

func memTotal(meminfo []byte) (int64, error) {
	for line := range bytes.Lines(meminfo) {
		fields := strings.Fields(string(line))
		if len(fields) == 3 && fields[0] == "MemTotal:" && fields[2] == "kB" {
			kib, err := strconv.ParseInt(fields[1], 10, 64)
			return kib * 1024, err
		}
	}
	return 0, errors.New("/proc/meminfo has no MemTotal")
}

// hostMachine answers the kubelet's questions about the machine with the real
// one; the rest of cadvisor (usage) stays kubemark's.
type hostMachine struct {
	cadvisortest.Fake
	host host
}

func (m *hostMachine) MachineInfo() (*cadvisorapi.MachineInfo, error) {
	return &cadvisorapi.MachineInfo{
		NumCores:       m.host.cpus,
		MemoryCapacity: uint64(m.host.memory),
		BootID:         m.host.bootID,
		InstanceID:     cadvisorapi.InstanceID(m.NodeName),
	}, nil
}

func (m *hostMachine) VersionInfo() (*cadvisorapi.VersionInfo, error) {
	return &cadvisorapi.VersionInfo{KernelVersion: m.host.kernel, ContainerOsVersion: "K3s stand-in"}, nil
}

func (m *hostMachine) RootFsInfo() (cadvisorapiv2.FsInfo, error) {
	return cadvisorapiv2.FsInfo{Capacity: uint64(m.host.storage), Available: uint64(m.host.storage)}, nil
}

// reservingManager adds to kubemark's stub what lowers allocatable. The stub
// reserves nothing, so that --system-reserved would have no effect.
type reservingManager struct {
	cm.ContainerManager
	host host
	args kubeletArgs
}

func (m *reservingManager) GetCapacity(localStorageCapacityIsolation bool) v1.ResourceList {
	if !localStorageCapacityIsolation {
		return v1.ResourceList{}
	}
	return v1.ResourceList{v1.ResourceEphemeralStorage: *resource.NewQuantity(m.host.storage, resource.BinarySI)}
}

// GetNodeAllocatableReservation follows the kubelet's node allocatable rule:
// allocatable = capacity − system-reserved − kube-reserved − hard eviction.
func (m *reservingManager) GetNodeAllocatableReservation() v1.ResourceList {
	reservation := m.args.reserved.DeepCopy()
	add := func(name v1.ResourceName, bytes int64) {
		sum := reservation[name]
		sum.Add(*resource.NewQuantity(bytes, resource.BinarySI))
		reservation[name] = sum
	}
	add(v1.ResourceMemory, m.args.evictionMemory.of(m.host.memory))
	add(v1.ResourceEphemeralStorage, m.args.evictionStorage.of(m.host.storage))
	return reservation
}
