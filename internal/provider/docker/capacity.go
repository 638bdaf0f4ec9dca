package docker

import (
	"fmt"
	"strconv"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/provider"
)

// capacity is what a kubelet in a container on this host believes to have: all
// of it, since /proc is not cut down to the container's limits.
type capacity struct {
	host        string
	cpus        int
	memoryBytes int64
}

// reserved is the value of the kubelet's --system-reserved which leaves exactly
// the Spec's CPU and memory allocatable.
//
// allocatable = capacity − system-reserved − kube-reserved − eviction-hard,
// where k3s sets no kube-reserved and, unlike a plain kubelet (100Mi), no
// memory.available in eviction-hard: its defaults are imagefs.available<5% and
// nodefs.available<5%. validateArgs keeps users from changing either.
func (c capacity) reserved(s provider.Spec) (string, error) {
	cpu := int64(c.cpus)*1000 - s.CPUMilli
	memory := c.memoryBytes - s.MemoryBytes
	if cpu < 0 {
		return "", fmt.Errorf("%w: pool %s wants %dm of CPU for a node, host %s has %dm", provider.ErrRefused, s.Pool, s.CPUMilli, c.host, int64(c.cpus)*1000)
	}
	if memory < 0 {
		return "", fmt.Errorf("%w: pool %s wants %s of memory for a node, host %s has %s", provider.ErrRefused, s.Pool, mebibytes(s.MemoryBytes), c.host, mebibytes(c.memoryBytes))
	}
	return "cpu=" + strconv.FormatInt(cpu, 10) + "m,memory=" + strconv.FormatInt(memory, 10), nil
}

// limits are the container's own, in billionths of a core and bytes; 0 is none.
func (c capacity) limits(l Limits, s provider.Spec) (nanoCPUs, memoryBytes int64, err error) {
	cpu := l.CPUMilli
	switch {
	case cpu == Unlimited:
		cpu = 0
	case cpu == 0:
		cpu = s.CPUMilli
	case cpu < s.CPUMilli:
		return 0, 0, fmt.Errorf("%w: the container's CPU limit %dm is below the %dm of pool %s", provider.ErrRefused, cpu, s.CPUMilli, s.Pool)
	}
	memory := l.MemoryBytes
	switch {
	case memory == Unlimited:
		memory = 0
	case memory == 0:
		memory = min(s.MemoryBytes+AgentMemoryBytes, c.memoryBytes)
	case memory < s.MemoryBytes:
		return 0, 0, fmt.Errorf("%w: the container's memory limit %s is below the %s of pool %s", provider.ErrRefused, mebibytes(memory), mebibytes(s.MemoryBytes), s.Pool)
	}
	return cpu * 1_000_000, memory, nil
}

// need is what a machine takes of this host: its container's limits, or what its
// node offers to pods where it has none.
func (c capacity) need(l Limits, s provider.Spec) size {
	nano, memory, err := c.limits(l, s)
	if err != nil { // refused when it is made
		nano, memory = 0, 0
	}
	return size{cpuMilli: max(nano/1_000_000, s.CPUMilli), memoryBytes: max(memory, s.MemoryBytes)}
}

func mebibytes(b int64) string { return strconv.FormatInt(b>>20, 10) + "Mi" }
