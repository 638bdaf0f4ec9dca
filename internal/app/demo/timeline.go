package demo

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/k3s-autoscaler/k3s-autoscaler/bus"
	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// timeline prints what matters of the log while it is written.
func (d *demo) timeline(ctx context.Context) error {
	for del, err := range d.app.Events(ctx, bus.ReadOptions{Cluster: clusterName, FromSequence: 1, Follow: true}) {
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("follow the log: %w", err)
		}
		line, err := describe(del.Event)
		if err != nil {
			return err
		}
		if line != "" {
			fmt.Fprintf(d.o.Out, "%s  %s\n", d.at(del.Event.Time()), line)
		}
	}
	return nil
}

// describe says in one line what an event means; empty for what only machines
// care about.
func describe(e events.Event) (string, error) {
	switch e.Type() {
	case events.TypeAlertReceived:
		p, err := events.Decode[events.AlertReceived](e)
		return fmt.Sprintf("   alert      %s %s", p.Labels["alertname"], p.Status), err
	case events.TypeScaleupDecided:
		p, err := events.Decode[events.ScaleupDecided](e)
		return fmt.Sprintf("   decision   add %d: %s", p.Delta, p.Reason.Message), err
	case events.TypeScaledownDecided:
		p, err := events.Decode[events.ScaledownDecided](e)
		return fmt.Sprintf("   decision   remove %s: %s", strings.Join(p.Nodes, ", "), p.Reason.Message), err
	case events.TypeNodeCreated:
		p, err := events.Decode[events.NodeCreated](e)
		return fmt.Sprintf("   %-16s machine started", p.Node), err
	case events.TypeNodeReady:
		p, err := events.Decode[events.NodeReady](e)
		return fmt.Sprintf("   %-16s Ready (%s)", p.Node, stages(p.Stages)), err
	case events.TypeNodeFailed:
		p, err := events.Decode[events.NodeFailed](e)
		return fmt.Sprintf("   %-16s FAILED: %s", p.Node, p.Failure.Reason.Message), err
	case events.TypeNodeLost:
		p, err := events.Decode[events.NodeLost](e)
		return fmt.Sprintf("   %-16s LOST: %s", p.Node, p.Reason.Message), err
	case events.TypeNodeCordoned:
		p, err := events.Decode[events.NodeCordoned](e)
		return fmt.Sprintf("   %-16s cordoned", p.Node), err
	case events.TypeNodeDrainProgressed:
		p, err := events.Decode[events.NodeDrainProgressed](e)
		return fmt.Sprintf("   %-16s evicted %s", p.Node, strings.Join(p.Evicted, ", ")), err
	case events.TypeNodeDrainBlocked:
		p, err := events.Decode[events.NodeDrainBlocked](e)
		return fmt.Sprintf("   %-16s drain blocked: %s", p.Node, p.Blockers[0].Message), err
	case events.TypeNodeDrained:
		p, err := events.Decode[events.NodeDrained](e)
		return fmt.Sprintf("   %-16s drained", p.Node), err
	case events.TypeNodeUncordoned:
		p, err := events.Decode[events.NodeUncordoned](e)
		return fmt.Sprintf("   %-16s uncordoned: %s", p.Node, p.Reason.Message), err
	case events.TypeNodeRemoved:
		p, err := events.Decode[events.NodeRemoved](e)
		return fmt.Sprintf("   %-16s removed (%s)", p.Node, stages(p.Stages)), err
	case events.TypeDeadletterRecorded:
		p, err := events.Decode[events.DeadletterRecorded](e)
		return "   DEAD LETTER of " + p.Handler + ": " + p.Reason, errors.Join(err)
	}
	return "", nil
}

func stages(list []events.Stage) string {
	parts := make([]string, len(list))
	for i, s := range list {
		parts[i] = fmt.Sprintf("%s %s", s.Name, seconds(s.Seconds))
	}
	return strings.Join(parts, ", ")
}

func seconds(s float64) string {
	return time.Duration(s * float64(time.Second)).Round(time.Millisecond).String()
}
