package simulation

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// defaultPod fills in what the API server does.
func defaultPod(p *corev1.Pod) {
	if p.Spec.SchedulerName == "" {
		p.Spec.SchedulerName = corev1.DefaultSchedulerName
	}
	if p.Spec.RestartPolicy == "" {
		p.Spec.RestartPolicy = corev1.RestartPolicyAlways
	}
	if p.Spec.TerminationGracePeriodSeconds == nil {
		grace := int64(corev1.DefaultTerminationGracePeriodSeconds)
		p.Spec.TerminationGracePeriodSeconds = &grace
	}
	if p.Spec.Priority == nil {
		p.Spec.Priority = new(int32)
	}
	seconds := int64(300)
	for _, k := range []string{corev1.TaintNodeNotReady, corev1.TaintNodeUnreachable} {
		if !slices.ContainsFunc(p.Spec.Tolerations, func(t corev1.Toleration) bool {
			return t.Key == k || t.Key == "" && t.Operator == corev1.TolerationOpExists
		}) {
			p.Spec.Tolerations = append(p.Spec.Tolerations, corev1.Toleration{
				Key: k, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: &seconds,
			})
		}
	}
	if p.Status.Phase == "" {
		p.Status.Phase = corev1.PodPending
	}
}

// runPods is what the kubelets do with pods that are bound to their nodes.
func (w *World) runPods() {
	alive := map[string]bool{}
	for _, a := range w.agentsByID() {
		if a.registered {
			alive[a.Name] = true
		}
	}
	for _, p := range w.store.pods() {
		if p.Spec.NodeName == "" || !alive[p.Spec.NodeName] {
			continue
		}
		uid := string(p.UID)
		switch {
		case p.DeletionTimestamp != nil:
			stop := w.o.Delays.PodStop
			if p.DeletionGracePeriodSeconds != nil {
				stop = min(stop, time.Duration(*p.DeletionGracePeriodSeconds)*time.Second)
			}
			if !w.elapsed("stop/"+uid, stop) {
				continue
			}
			if len(p.Finalizers) == 0 {
				w.deletePod(p, metav1.DeleteOptions{GracePeriodSeconds: new(int64)})
			} else if p.Status.Phase == corev1.PodRunning {
				w.store.modifyPod(p, func(p *corev1.Pod) {
					p.Status.Phase = corev1.PodSucceeded
					w.setPodReady(p, corev1.ConditionFalse)
				})
			}
		case p.Status.Phase == corev1.PodPending && w.elapsed("start/"+uid, w.o.Delays.PodStart):
			w.store.modifyPod(p, w.startPod)
		}
	}
}

func (w *World) startPod(p *corev1.Pod) {
	now := w.now()
	p.Status.Phase = corev1.PodRunning
	p.Status.StartTime = &now
	for _, t := range []corev1.PodConditionType{corev1.PodInitialized, corev1.ContainersReady} {
		setPodCondition(p, corev1.PodCondition{Type: t, Status: corev1.ConditionTrue, LastTransitionTime: now})
	}
	w.setPodReady(p, corev1.ConditionTrue)
	p.Status.ContainerStatuses = nil
	for _, c := range p.Spec.Containers {
		p.Status.ContainerStatuses = append(p.Status.ContainerStatuses, corev1.ContainerStatus{
			Name: c.Name, Image: c.Image, Ready: true,
			State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: now}},
		})
	}
}

func (w *World) setPodReady(p *corev1.Pod, status corev1.ConditionStatus) {
	setPodCondition(p, corev1.PodCondition{Type: corev1.PodReady, Status: status, LastTransitionTime: w.now()})
}

// setPodCondition leaves a condition that says the same alone, so that nothing
// changes for those who watch.
func setPodCondition(p *corev1.Pod, c corev1.PodCondition) {
	for i, old := range p.Status.Conditions {
		if old.Type != c.Type {
			continue
		}
		if old.Status == c.Status {
			c.LastTransitionTime = old.LastTransitionTime
		}
		conditions := slices.Clone(p.Status.Conditions)
		conditions[i] = c
		p.Status.Conditions = conditions
		return
	}
	p.Status.Conditions = append(slices.Clone(p.Status.Conditions), c)
}
