package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/features"
	"k8s.io/kubernetes/pkg/scheduler/metrics"
)

// Kinds of question.
const (
	kindPlace    = "place"    // put each pod on the node that is named for it, in whatever order it takes
	kindSchedule = "schedule" // put the pods where the scheduler would, one after the other
	kindProbe    = "probe"    // could each pod go on a node of each template, alone?
	kindPack     = "pack"     // first fit, with new nodes of the templates as needed
)

type question struct {
	Kind    string
	Cluster cluster
	// Pods are "namespace/name" of pods of the cluster, in the order in which
	// they are to be put somewhere.
	Pods      []string
	Nodes     []string // for kindPlace: where each goes
	Templates []template
}

type cluster struct {
	Nodes          []*corev1.Node
	Pods           []*corev1.Pod
	Namespaces     []*corev1.Namespace
	Claims         []*corev1.PersistentVolumeClaim
	Volumes        []*corev1.PersistentVolume
	StorageClasses []*storagev1.StorageClass
}

// template is a node that may be added, with the pods of its DaemonSets.
type template struct {
	Name string
	Node *corev1.Node
	Pods []*corev1.Pod
}

type answer struct {
	Error string
	// Fates are what became of the pods, in the order of the question; of a
	// probe, for each pod those on each template.
	Fates []fate
	Nodes int // of a pack: how many were added
}

type fate struct {
	Node    string   // where it is now; empty: nowhere
	Plugins []string // that refused it
	Reason  string
	Evicted []string // pods that had to go for it
}

func main() {
	if err := run(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "fit:", err)
		os.Exit(1)
	}
}

func run(in io.Reader, out io.Writer) error {
	klog.SetLogger(klog.Logger{})
	metrics.Register()
	// A victim is to be gone when the preemption is decided.
	if err := utilfeature.DefaultMutableFeatureGate.Set(string(features.SchedulerAsyncPreemption) + "=false"); err != nil {
		return err
	}
	lines := bufio.NewReaderSize(in, 1<<20)
	w := bufio.NewWriter(out)
	for {
		line, err := lines.ReadBytes('\n')
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		var q question
		if err := json.Unmarshal(line, &q); err != nil {
			return fmt.Errorf("question is not understood: %w", err)
		}
		a, err := q.answer()
		if err != nil {
			a = answer{Error: err.Error()}
		}
		text, err := json.Marshal(a)
		if err != nil {
			return err
		}
		if _, err := w.Write(append(text, '\n')); err != nil {
			return err
		}
		if err := w.Flush(); err != nil {
			return err
		}
	}
}

func (q question) answer() (answer, error) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if q.Kind == kindPlace && len(q.Nodes) != len(q.Pods) {
		return answer{}, fmt.Errorf("%d pods, but %d nodes to put them on", len(q.Pods), len(q.Nodes))
	}
	s, err := newScheduler(ctx, q.Cluster)
	if err != nil {
		return answer{}, err
	}
	var a answer
	for i, ref := range q.Pods {
		pod := s.pods[ref]
		if pod == nil {
			return answer{}, fmt.Errorf("pod %s is not in the cluster", ref)
		}
		switch q.Kind {
		case kindPlace:
			f, err := s.place(ctx, pod, q.Nodes[i])
			if err != nil {
				return answer{}, err
			}
			a.Fates = append(a.Fates, f)
		case kindSchedule:
			f, err := s.schedule(ctx, pod)
			if err != nil {
				return answer{}, err
			}
			a.Fates = append(a.Fates, f)
		case kindProbe:
			for _, t := range q.Templates {
				f, err := s.probe(ctx, pod, t)
				if err != nil {
					return answer{}, err
				}
				a.Fates = append(a.Fates, f)
			}
		case kindPack:
			f, added, err := s.pack(ctx, pod, q.Templates)
			if err != nil {
				return answer{}, err
			}
			a.Fates = append(a.Fates, f)
			a.Nodes += added
		default:
			return answer{}, fmt.Errorf("kind is %q, expected one of place, schedule, probe, pack", q.Kind)
		}
	}
	if q.Kind == kindPlace {
		return a, s.retry(ctx, q, a.Fates)
	}
	return a, nil
}
