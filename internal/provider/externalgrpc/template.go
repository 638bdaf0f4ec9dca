package externalgrpc

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/provider"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/provider/externalgrpc/protos"
)

// fit refuses a Spec that the group's nodes can't be, where the provider tells
// what they are. Decisions simulate the node that the pool describes: a smaller
// one, or one with a taint that it does not know, would not take the pods that
// it was bought for, and be bought again and again.
func (p *Provider) fit(ctx context.Context, s provider.Spec) error {
	p.mu.Lock()
	known := p.fits && p.fitsOf.CPUMilli == s.CPUMilli && p.fitsOf.MemoryBytes == s.MemoryBytes && slices.Equal(p.fitsOf.Taints, s.Taints)
	p.mu.Unlock()
	if known {
		return nil
	}
	if _, err := p.group(ctx); err != nil {
		return err
	}
	var got *protos.NodeGroupTemplateNodeInfoResponse
	err := p.call(ctx, "read the template of its nodes", func(ctx context.Context) (err error) {
		got, err = p.client.NodeGroupTemplateNodeInfo(ctx, &protos.NodeGroupTemplateNodeInfoRequest{Id: p.o.NodeGroup})
		return err
	})
	switch {
	case status.Code(unwrapped(err)) == codes.Unimplemented, err == nil && len(got.GetNodeBytes()) == 0:
		// It does not tell.
	case err != nil:
		return err
	default:
		var n corev1.Node
		if err := n.Unmarshal(got.GetNodeBytes()); err != nil {
			return fmt.Errorf("provider %s, node group %s: read the template of its nodes: %w", p.o.Address, p.o.NodeGroup, err)
		}
		if err := p.compare(s, &n); err != nil {
			return err
		}
	}
	p.mu.Lock()
	p.fits, p.fitsOf = true, s
	p.mu.Unlock()
	return nil
}

func unwrapped(err error) error {
	var c *callError
	if errors.As(err, &c) {
		return c.err
	}
	return err
}

// compare says everything in which the template is less than the Spec.
func (p *Provider) compare(s provider.Spec, n *corev1.Node) error {
	var errs []error
	refuse := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("%w: node group %s of provider %s %s", provider.ErrRefused, p.o.NodeGroup, p.o.Address, fmt.Sprintf(format, args...)))
	}
	if cpu := n.Status.Allocatable.Cpu().MilliValue(); cpu > 0 && cpu < s.CPUMilli {
		refuse("has nodes of %dm CPU, pool %s says %dm; set its cpu to that", cpu, p.o.Pool, s.CPUMilli)
	}
	if memory := n.Status.Allocatable.Memory().Value(); memory > 0 && memory < s.MemoryBytes {
		refuse("has nodes of %d bytes of memory, pool %s says %d; set its memory to that", memory, p.o.Pool, s.MemoryBytes)
	}
	for _, t := range n.Spec.Taints {
		if t.Effect == corev1.TaintEffectPreferNoSchedule {
			continue
		}
		if !slices.ContainsFunc(s.Taints, func(o provider.Taint) bool {
			return o.Key == t.Key && o.Value == t.Value && o.Effect == string(t.Effect)
		}) {
			refuse("has nodes with the taint %s, pool %s does not; add it to its taints, or to its startup_taints if it goes away", t.ToString(), p.o.Pool)
		}
	}
	return errors.Join(errs...)
}
