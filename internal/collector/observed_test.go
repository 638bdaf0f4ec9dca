package collector_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
	"github.com/k3s-autoscaler/k3s-autoscaler/internal/collector"
)

func whats(os []events.NodeObserved) []string {
	var out []string
	for _, o := range os {
		out = append(out, o.What)
	}
	return out
}

func TestTheLifeOfANodeOfOursIsToldAsItHappens(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		recs := &records{present: []events.NodeRecord{{Name: "w1", Phase: "created", CorrelationID: "corr-1"}}}
		b := setup(t, func(o *collector.Options) { o.Records = recs }, node("server"))
		defer b.stop()
		b.after(time.Second)
		b.create(node("w1", claimed))
		es := b.fresh()
		o := one[events.NodeObserved](t, es)
		require.Equal(t, events.ObservedRegistered, o.What)
		require.Equal(t, map[string]string{events.LabelClaim: "claim-w1"}, o.Labels)
		require.Equal(t, "uid-w1", o.UID)
		require.Equal(t, "w1", es[0].event.Subject())
		require.Equal(t, "corr-1", es[0].event.Extensions()[events.ExtCorrelationID])

		b.update(node("w1", claimed, ready(time.Now(), corev1.ConditionFalse)))
		o = one[events.NodeObserved](t, b.fresh())
		require.Equal(t, events.ObservedUnready, o.What)
		require.Equal(t, "KubeletFalse", o.Reason)
		b.after(time.Second)
		since := time.Now()
		b.update(node("w1", claimed, ready(since, corev1.ConditionTrue)))
		require.Equal(t, []string{events.ObservedReady}, whats(every[events.NodeObserved](t, b.fresh())))
		b.after(time.Minute)
		b.update(node("w1", claimed, ready(since, corev1.ConditionTrue)))
		require.Empty(t, every[events.NodeObserved](t, b.fresh()), "a heartbeat is no news")
		b.deleteNode("w1")
		require.Equal(t, []string{events.ObservedDeleted}, whats(every[events.NodeObserved](t, b.fresh())))
		b.deleteNode("server")
		require.Empty(t, every[events.NodeObserved](t, b.after(time.Second)), "only our own nodes are told of")
	})
}

func TestARestartTellsWhatIsKnownUnderTheSameIDs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := setup(t, nil, node("w1", claimed, ready(time.Now(), corev1.ConditionTrue)))
		require.Equal(t, []string{events.ObservedRegistered, events.ObservedReady}, whats(every[events.NodeObserved](t, b.after(time.Second))))
		b.stop()
		b.start(func(o *collector.Options) { o.Epoch = 2 })
		defer b.stop()
		es := b.after(time.Second)
		require.Empty(t, every[events.NodeObserved](t, es), "the bus knew the ids")
		require.NotEmpty(t, es)
	})
}

func TestChangesWithinOneSecondAreToldApart(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := setup(t, nil, node("w1", claimed))
		defer b.stop()
		b.after(time.Second)
		at := time.Now().Truncate(time.Second)
		for _, status := range []corev1.ConditionStatus{corev1.ConditionTrue, corev1.ConditionFalse, corev1.ConditionTrue} {
			b.update(node("w1", claimed, ready(at, status)))
			b.fresh()
		}
		require.Equal(t, []string{events.ObservedRegistered, events.ObservedReady, events.ObservedUnready, events.ObservedReady},
			whats(every[events.NodeObserved](t, b.bus.all())))
	})
}

func TestObservationsOutliveABusThatDoesNotAnswer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := setup(t, nil)
		defer b.stop()
		b.after(time.Second)
		b.bus.set(func() (bool, error) { return false, errDown })
		b.create(node("w1", claimed))
		b.after(10 * time.Second)
		b.update(node("w1", claimed, ready(time.Now(), corev1.ConditionTrue)))
		b.after(10 * time.Second)
		b.deleteNode("w1")
		require.Empty(t, b.after(10*time.Second))
		b.bus.set(nil)
		require.Equal(t, []string{events.ObservedRegistered, events.ObservedReady, events.ObservedDeleted},
			whats(every[events.NodeObserved](t, b.after(6*time.Second))))
	})
}

func TestANodeThatIsNoLongerOursIsLeftAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := setup(t, nil, node("w1", claimed), node("w2", claimed, func(n *corev1.Node) { n.Labels[events.LabelCluster] = "other" }))
		defer b.stop()
		require.Equal(t, "w1", one[events.NodeObserved](t, b.after(time.Second)).Node)
		b.update(node("w1"))
		b.fresh()
		b.deleteNode("w1")
		require.Empty(t, every[events.NodeObserved](t, b.after(time.Second)))
	})
}

func TestANodeThatWasReplacedEndsAndBegins(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := setup(t, nil, node("w1", claimed))
		defer b.stop()
		b.after(time.Second)
		b.update(node("w1", claimed, func(n *corev1.Node) { n.UID, n.CreationTimestamp = "uid-2", metav1.Now() }))
		os := every[events.NodeObserved](t, b.fresh())
		require.Equal(t, []string{events.ObservedDeleted, events.ObservedRegistered}, whats(os))
		require.Equal(t, "uid-w1", os[0].UID)
		require.Equal(t, "uid-2", os[1].UID)
	})
}
