package fit

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
)

// Scheduler is a process of test/env/k8s/fit. It serves one caller at a time.
type Scheduler struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// Fate is what the scheduler says of a pod.
type Fate struct {
	Node    string   // empty: nowhere
	Plugins []string // that refused it on some node
	Reason  string
	Evicted []string // pods that had to go for it
}

// Template is a node that may be added, with the pods of its DaemonSets.
type Template struct {
	Name string
	Node *corev1.Node
	Pods []*corev1.Pod
}

type question struct {
	Kind      string
	Cluster   cluster
	Pods      []string
	Nodes     []string
	Templates []Template
}

type cluster struct {
	Nodes          []*corev1.Node
	Pods           []*corev1.Pod
	Namespaces     []*corev1.Namespace
	Claims         []*corev1.PersistentVolumeClaim
	Volumes        []*corev1.PersistentVolume
	StorageClasses []*storagev1.StorageClass
}

type answer struct {
	Error string
	Fates []Fate
	Nodes int
}

// BuildScheduler builds the program and returns its path, below dir. With
// nothing cached it takes minutes.
func BuildScheduler(ctx context.Context, repository, dir string) (string, error) {
	path := filepath.Join(dir, "scheduler")
	cmd := exec.CommandContext(ctx, "go", "build", "-o", path, "./fit")
	cmd.Dir = filepath.Join(repository, "test", "env", "k8s")
	cmd.Env = append(os.Environ(), "GOWORK=off", "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build test/env/k8s/fit: %w\n%s", err, out)
	}
	return path, nil
}

// StartScheduler starts the program. Close ends it.
func StartScheduler(path string) (*Scheduler, error) {
	cmd := exec.Command(path)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return &Scheduler{cmd: cmd, in: in, out: bufio.NewReaderSize(out, 1<<20)}, nil
}

// Close ends the process.
func (s *Scheduler) Close() error { return errors.Join(s.in.Close(), s.cmd.Wait()) }

func (s *Scheduler) ask(c *Case, q question) (answer, error) {
	q.Cluster = cluster{Nodes: c.Nodes, Pods: c.Pods, Namespaces: c.Namespaces, Claims: c.Claims, Volumes: c.Volumes, StorageClasses: c.StorageClasses}
	line, err := json.Marshal(q)
	if err != nil {
		return answer{}, err
	}
	if _, err := s.in.Write(append(line, '\n')); err != nil {
		return answer{}, err
	}
	if line, err = s.out.ReadBytes('\n'); err != nil {
		return answer{}, fmt.Errorf("the scheduler's answer: %w", err)
	}
	var a answer
	if err := json.Unmarshal(line, &a); err != nil {
		return answer{}, err
	}
	if a.Error != "" {
		return answer{}, errors.New(a.Error)
	}
	return a, nil
}

// Place puts each pod on the node that is named for it, if the scheduler may.
func (s *Scheduler) Place(c *Case, pods, nodes []string) ([]Fate, error) {
	a, err := s.ask(c, question{Kind: "place", Pods: pods, Nodes: nodes})
	return a.Fates, err
}

// Schedule puts the pods where the scheduler would, one after the other.
func (s *Scheduler) Schedule(c *Case, pods []string) ([]Fate, error) {
	a, err := s.ask(c, question{Kind: "schedule", Pods: pods})
	return a.Fates, err
}

// Probe says of each pod whether it could go on a new node of each template: the
// answers for the first pod come first.
func (s *Scheduler) Probe(c *Case, pods []string, ts []Template) ([]Fate, error) {
	a, err := s.ask(c, question{Kind: "probe", Pods: pods, Templates: ts})
	return a.Fates, err
}

// Pack puts the pods on the first node that takes them, with new nodes of the
// first template that does, and returns how many nodes were added.
func (s *Scheduler) Pack(c *Case, pods []string, ts []Template) ([]Fate, int, error) {
	a, err := s.ask(c, question{Kind: "pack", Pods: pods, Templates: ts})
	return a.Fates, a.Nodes, err
}
