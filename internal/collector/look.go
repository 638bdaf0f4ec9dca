package collector

import (
	"fmt"
	"log/slog"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/utils/clock"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// Look returns what a snapshot says of the objects, converted as a Collector
// converts what it watches: the way to ask for a decision on a cluster that
// nobody watches.
func Look(objects ...runtime.Object) (events.SnapshotObjects, error) {
	c := &Collector{o: Options{Clock: clock.RealClock{}}, log: slog.Default(), wake: make(chan struct{}, 1),
		model: newModel(), pending: newPending(), wave: newWave(0), watcher: nodeWatcher{seen: map[string]seenNode{}}}
	for _, o := range objects {
		switch o := o.(type) {
		case *corev1.Node:
			c.setNode(trimNode(o))
		case *corev1.Pod:
			c.setPod(trimPod(o))
		case *corev1.PersistentVolumeClaim:
			c.setClaim(trimClaim(o))
		case *corev1.PersistentVolume:
			c.setVolume(trimVolume(o))
		case *storagev1.StorageClass:
			c.setStorageClass(trimStorageClass(o))
		case *corev1.Namespace:
			c.setNamespace(trimNamespace(o))
		case *policyv1.PodDisruptionBudget:
			c.setPDB(trimMeta(o))
		case *appsv1.DaemonSet:
			c.setDaemonSet(trimDaemonSet(o))
		default:
			return events.SnapshotObjects{}, fmt.Errorf("%T is no kind of object that snapshots are made of", o)
		}
	}
	return c.model.all(), nil
}
