package kube

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

// lockedBuffer is a log that the broadcaster's goroutine writes.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

type recorderBundle struct {
	client *fake.Clientset
	r      *Recorder
	reg    *prometheus.Registry
	log    lockedBuffer
}

func setupRecorder(t *testing.T, client *fake.Clientset) *recorderBundle {
	t.Helper()
	b := &recorderBundle{client: client, reg: prometheus.NewRegistry()}
	var err error
	b.r, err = NewRecorder(client, slog.New(slog.NewTextHandler(&b.log, nil)), Options{Registerer: b.reg})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.r.Close()) })
	return b
}

// written waits for Events.
func (b *recorderBundle) written(t *testing.T, want func([]corev1.Event) bool) []corev1.Event {
	t.Helper()
	var list []corev1.Event
	require.Eventually(t, func() bool {
		l, err := b.client.CoreV1().Events(metav1.NamespaceAll).List(t.Context(), metav1.ListOptions{})
		require.NoError(t, err)
		list = l.Items
		return want(list)
	}, time.Minute, time.Millisecond)
	return list
}

func web0() *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web-0", UID: "uid-1"}}
}

func TestNotesBecomeEventsOfTheirObjects(t *testing.T) {
	t.Parallel()
	b := setupRecorder(t, fake.NewClientset(web0()))
	require.NoError(t, b.r.Post(t.Context(), Note{Namespace: "shop", Name: "web-0", Warning: true, Reason: "NotTriggerScaleUp", Message: "100% full", ID: "e1"}))
	require.NoError(t, b.r.Post(t.Context(), Note{Name: "n1", Reason: "ScaleDown", Message: "removed", ID: "e2"}))
	list := b.written(t, func(l []corev1.Event) bool { return len(l) == 2 })
	by := map[string]corev1.Event{}
	for _, e := range list {
		by[e.InvolvedObject.Kind] = e
	}
	pod, node := by["Pod"], by["Node"]
	require.Equal(t, corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: "shop", Name: "web-0", UID: "uid-1"}, pod.InvolvedObject)
	require.Equal(t, []string{"shop", corev1.EventTypeWarning, "NotTriggerScaleUp", "100% full", UserAgent, "e1"},
		[]string{pod.Namespace, pod.Type, pod.Reason, pod.Message, pod.Source.Component, pod.Annotations[AnnotationEvent]})
	require.Equal(t, corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: "n1", UID: "n1"}, node.InvolvedObject)
	require.Equal(t, []string{metav1.NamespaceDefault, corev1.EventTypeNormal}, []string{node.Namespace, node.Type})
	require.Empty(t, b.log.String())
}

func TestARepeatedNoteIsCountedInOneEvent(t *testing.T) {
	t.Parallel()
	client := fake.NewClientset(web0())
	b := setupRecorder(t, client)
	n := Note{Namespace: "shop", Name: "web-0", Reason: "NotTriggerScaleUp", Message: "full", ID: "e1"}
	require.NoError(t, b.r.Post(t.Context(), n))
	require.NoError(t, b.r.Post(t.Context(), n))
	b.written(t, func(l []corev1.Event) bool { return len(l) == 1 && l[0].Count == 2 })

	// Another process that is given the same: it finds the Event by its name.
	other := setupRecorder(t, client)
	require.NoError(t, other.r.Post(t.Context(), n))
	n.Message = "another"
	require.NoError(t, other.r.Post(t.Context(), n)) // behind it in the queue
	b.written(t, func(l []corev1.Event) bool { return len(l) == 2 })
	require.Empty(t, other.log.String(), "that is no failure")
}

func TestAPodThatIsGoneGetsNoEvent(t *testing.T) {
	t.Parallel()
	b := setupRecorder(t, fake.NewClientset())
	require.ErrorIs(t, b.r.Post(t.Context(), Note{Namespace: "shop", Name: "web-0", Reason: "R", Message: "m"}), ErrNotFound)
}

func TestARefusalOfTheServerIsSaidOnce(t *testing.T) {
	t.Parallel()
	client := fake.NewClientset()
	refused := make(chan struct{}, 3)
	allowed := make(chan struct{})
	client.PrependReactor("create", "events", func(clienttesting.Action) (bool, runtime.Object, error) {
		select {
		case <-allowed:
			return false, nil, nil
		default:
		}
		refused <- struct{}{}
		return true, nil, apierrors.NewForbidden(schema.GroupResource{Resource: "events"}, "", errors.New("no"))
	})
	b := setupRecorder(t, client)
	for _, node := range []string{"n1", "n2", "n3"} {
		require.NoError(t, b.r.Post(t.Context(), Note{Name: node, Reason: "ScaleDown", Message: "removed", ID: node}))
		<-refused
	}
	close(allowed)
	require.NoError(t, b.r.Post(t.Context(), Note{Name: "n4", Reason: "ScaleDown", Message: "removed", ID: "n4"}))
	require.Eventually(t, func() bool { return strings.Contains(b.log.String(), "can be written again") }, time.Minute, time.Millisecond)
	require.Equal(t, 1, strings.Count(b.log.String(), "can't be written"), b.log.String())
	require.Contains(t, b.log.String(), "apply deploy/kubernetes/rbac.yaml")
	require.InDelta(t, 3, testutil.ToFloat64(b.r.errors.vec.WithLabelValues("create", "events")), 0)
	require.NoError(t, testutil.GatherAndCompare(b.reg, strings.NewReader(`# HELP autoscaler_kubernetes_events_total Calls that write Kubernetes Events on pods and nodes, by outcome: written or failed.
# TYPE autoscaler_kubernetes_events_total counter
autoscaler_kubernetes_events_total{outcome="failed"} 3
autoscaler_kubernetes_events_total{outcome="written"} 1
`), "autoscaler_kubernetes_events_total"))
}

func TestALongMessageIsCutBetweenCharacters(t *testing.T) {
	t.Parallel()
	for n := range 4 {
		s := short(strings.Repeat("a", n)+strings.Repeat("ü", maxNote), maxNote)
		require.LessOrEqual(t, len(s), maxNote)
		require.True(t, utf8.ValidString(s))
		require.True(t, strings.HasSuffix(s, "…"))
	}
}

func TestTheNameOfAnEventIsValidHoweverLongTheObjects(t *testing.T) {
	t.Parallel()
	e := &corev1.Event{InvolvedObject: corev1.ObjectReference{Name: strings.Repeat("a", 229) + "." + strings.Repeat("b", 20)}}
	require.LessOrEqual(t, len(eventName(e)), 253)
	require.NotContains(t, eventName(e), "..")
}
