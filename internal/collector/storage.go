package collector

import (
	"maps"
	"reflect"
	"slices"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

func (c *Collector) setClaim(v *corev1.PersistentVolumeClaim) {
	now := convertClaim(v)
	c.changeClaim(v.Namespace+"/"+v.Name, &now)
}

func (c *Collector) deleteClaim(v *corev1.PersistentVolumeClaim) {
	c.changeClaim(v.Namespace+"/"+v.Name, nil)
}

func (c *Collector) changeClaim(key string, now *claimState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if old, ok := c.model.claims[key]; ok {
		remove(c.model.volumeOf, old.volume, key)
		remove(c.model.claimsIn, old.class, key)
	}
	if now == nil {
		delete(c.model.claims, key)
	} else {
		c.model.claims[key] = *now
		if now.volume != "" {
			add(c.model.volumeOf, now.volume, key)
		}
		add(c.model.claimsIn, now.class, key)
	}
	c.convertPodsWith(key)
}

func (c *Collector) setVolume(v *corev1.PersistentVolume) {
	now := convertVolume(v)
	c.changeVolume(v.Name, &now)
}

func (c *Collector) deleteVolume(v *corev1.PersistentVolume) { c.changeVolume(v.Name, nil) }

func (c *Collector) changeVolume(name string, now *volumeState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now == nil {
		delete(c.model.volumes, name)
	} else {
		c.model.volumes[name] = *now
	}
	for claim := range c.model.volumeOf[name] {
		c.convertPodsWith(claim)
	}
}

func (c *Collector) setStorageClass(s *storagev1.StorageClass) {
	now := convertStorageClass(s)
	c.changeStorageClass(s.Name, &now)
}

func (c *Collector) deleteStorageClass(s *storagev1.StorageClass) { c.changeStorageClass(s.Name, nil) }

func (c *Collector) changeStorageClass(name string, now *storageState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	old, had := c.model.storage[name]
	switch {
	case now == nil:
		delete(c.model.storage, name)
	case had && reflect.DeepEqual(old, *now):
		return
	default:
		c.model.storage[name] = *now
	}
	for claim := range c.model.claimsIn[name] {
		c.convertPodsWith(claim)
	}
}

func (c *Collector) convertPodsWith(claim string) {
	// Converting a pod writes to the set.
	for _, key := range slices.Collect(maps.Keys(c.model.claimPods[claim])) {
		c.putPod(c.model.withClaims[key])
	}
}

func (c *Collector) setNamespace(n *corev1.Namespace) {
	now := events.SnapshotNamespace{Name: n.Name, Labels: nilIfEmpty(n.Labels)}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, _, differs := put(c.model.namespaces, now.Key(), now); differs {
		c.touch(events.KindNamespace, now.Key(), soon)
	}
}

func (c *Collector) deleteNamespace(n *corev1.Namespace) {
	c.mu.Lock()
	defer c.mu.Unlock()
	drop(c, c.model.namespaces, events.KindNamespace, n.Name, soon)
}
