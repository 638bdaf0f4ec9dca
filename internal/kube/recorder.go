package kube

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/record"
	"k8s.io/klog/v2"
)

// AnnotationEvent is on a Kubernetes Event of ours: the id of the event of the
// stream that it tells of, which 'explain' takes.
const AnnotationEvent = "k3s-autoscaler.dev/event"

const (
	// maxNote is how many bytes of a note are written: the limit of events.k8s.io.
	maxNote = 1024
	// maxObject is how much of an object's name the name of its Event holds.
	maxObject = 230
)

// Note is one Kubernetes Event to be written.
type Note struct {
	Namespace string // of the pod; empty for a node
	Name      string // of the pod or node
	Warning   bool
	Reason    string
	Message   string
	ID        string // of what it tells of
}

// Recorder writes Kubernetes Events. client-go's broadcaster queues them, counts
// repeated ones instead of writing them again, folds many similar ones of an
// object into one, limits how many an object gets, and tries again while the
// server can't be reached.
type Recorder struct {
	*Reader
	broadcaster record.EventBroadcaster
	recorder    record.EventRecorder
}

// NewRecorder returns a Recorder, to be closed. It makes no call.
func NewRecorder(client kubernetes.Interface, log *slog.Logger, o Options) (*Recorder, error) {
	r, err := NewReader(client, o)
	if err != nil {
		return nil, err
	}
	written, err := newNotesWritten(o.Registerer)
	if err != nil {
		return nil, fmt.Errorf("kube: register metrics: %w", err)
	}
	// The sink says what fails, once; the broadcaster would for each event and try.
	quiet := klog.New(nil)
	b := record.NewBroadcaster(record.WithContext(klog.NewContext(context.Background(), quiet)))
	b.StartRecordingToSink(&sink{Reader: r, written: written, log: log})
	return &Recorder{Reader: r, broadcaster: b,
		recorder: b.NewRecorder(scheme.Scheme, corev1.EventSource{Component: UserAgent}).WithLogger(quiet)}, nil
}

// Close stops writing; what is queued and not written is dropped.
func (r *Recorder) Close() error {
	r.broadcaster.Shutdown()
	return nil
}

// Post queues a note. Of a pod it looks up the uid, by which 'kubectl describe'
// finds a pod's Events and a later pod of the same name gets none of them:
// ErrNotFound when the pod is gone. A node's Events bear its name as the uid, as
// the kubelet's do: so they are found before the Node object exists, and after.
func (r *Recorder) Post(ctx context.Context, n Note) error {
	ref := &corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: n.Name, UID: types.UID(n.Name)}
	if n.Namespace != "" {
		var pod *corev1.Pod
		if err := r.call(ctx, "get", "pods", func(ctx context.Context) (err error) {
			pod, err = r.client.CoreV1().Pods(n.Namespace).Get(ctx, n.Name, metav1.GetOptions{})
			return err
		}); err != nil {
			return wrap(err, "look up pod %s/%s", n.Namespace, n.Name)
		}
		ref = &corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: n.Namespace, Name: n.Name, UID: pod.UID}
	}
	kind := corev1.EventTypeNormal
	if n.Warning {
		kind = corev1.EventTypeWarning
	}
	r.recorder.AnnotatedEventf(ref, map[string]string{AnnotationEvent: n.ID}, kind, n.Reason, "%s", short(n.Message, maxNote))
	return nil
}

// short cuts a text at a number of bytes, between characters.
func short(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	s = s[:limit-len("…")]
	for !utf8.ValidString(s) {
		s = s[:len(s)-1]
	}
	return s + "…"
}

// sink writes what the broadcaster hands it.
type sink struct {
	*Reader
	written *prometheus.CounterVec
	log     *slog.Logger

	mu      sync.Mutex
	failing bool
}

var _ record.EventSink = (*sink)(nil)

// Create implements record.EventSink. The name follows from what the Event says
// of what: two processes that tell the same write one Event.
func (s *sink) Create(e *corev1.Event) (*corev1.Event, error) {
	e.Name = eventName(e)
	return s.write("create", func(ctx context.Context) (*corev1.Event, error) {
		return s.client.CoreV1().Events(e.Namespace).Create(ctx, e, metav1.CreateOptions{})
	})
}

func eventName(e *corev1.Event) string {
	sum := sha256.Sum256([]byte(strings.Join([]string{e.Annotations[AnnotationEvent], string(e.InvolvedObject.UID), e.Reason, e.Message}, "\x00")))
	name := e.InvolvedObject.Name
	return strings.TrimRight(name[:min(len(name), maxObject)], "-.") + "." + hex.EncodeToString(sum[:8])
}

// Patch implements record.EventSink: it raises the count of an Event.
func (s *sink) Patch(e *corev1.Event, data []byte) (*corev1.Event, error) {
	return s.write("patch", func(ctx context.Context) (*corev1.Event, error) {
		return s.client.CoreV1().Events(e.Namespace).Patch(ctx, e.Name, types.StrategicMergePatchType, data, metav1.PatchOptions{})
	})
}

// Update implements record.EventSink; the recorder patches instead.
func (*sink) Update(*corev1.Event) (*corev1.Event, error) {
	return nil, errors.New("update of an event: not used")
}

// write makes one call, counts it, and logs when writing begins to fail and when
// it works again.
func (s *sink) write(verb string, do func(context.Context) (*corev1.Event, error)) (out *corev1.Event, err error) {
	err = s.call(context.Background(), verb, "events", func(ctx context.Context) (err error) {
		out, err = do(ctx)
		return err
	})
	if apierrors.IsAlreadyExists(err) || verb == "patch" && apierrors.IsNotFound(err) {
		return out, err // somebody wrote it, or it expired and is written anew: the recorder knows both
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err == nil:
		s.written.WithLabelValues("written").Inc()
		if s.failing {
			s.log.Info("Kubernetes Events can be written again")
		}
	case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause): // nobody will look there
		return out, err
	default:
		s.written.WithLabelValues("failed").Inc()
		if !s.failing {
			s.log.Warn("Kubernetes Events can't be written, scaling goes on without them"+advice(err), "error", err)
		}
	}
	s.failing = err != nil
	return out, err
}

func advice(err error) string {
	if apierrors.IsForbidden(err) {
		return "; the identity of actor_kubeconfig needs create and patch of events: apply deploy/kubernetes/rbac.yaml"
	}
	return ""
}
