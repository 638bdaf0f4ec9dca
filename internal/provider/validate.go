package provider

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
)

// MaxNameLength is the longest machine name, in characters: the name becomes a
// host name and the value of the label kubernetes.io/hostname.
const MaxNameLength = 63

var (
	machineName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)

	taintEffects = []string{"NoSchedule", "PreferNoSchedule", "NoExecute"}
)

// Validate says everything that is wrong with s for any provider, joined, each
// wrapping ErrRefused.
func (s Spec) Validate() error {
	var errs []error
	refuse := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("%w: %s", ErrRefused, fmt.Sprintf(format, args...)))
	}
	if len(s.Name) > MaxNameLength || !machineName.MatchString(s.Name) {
		refuse("name is %q, expected a DNS name of at most %d characters", s.Name, MaxNameLength)
	}
	for _, f := range []struct{ name, value string }{
		{"cluster", s.Cluster}, {"pool", s.Pool}, {"claim", s.ClaimID}, {"epoch", s.Epoch},
	} {
		if f.value == "" {
			refuse("%s is empty", f.name)
		}
	}
	if s.CPUMilli <= 0 {
		refuse("cpu is %dm, expected more than 0", s.CPUMilli)
	}
	if s.MemoryBytes <= 0 {
		refuse("memory is %d bytes, expected more than 0", s.MemoryBytes)
	}
	if s.MaxPods < 0 {
		refuse("max pods is %d, expected 0 (the kubelet's default) or more", s.MaxPods)
	}
	for key := range s.Labels {
		if key == "" {
			refuse("a label has no key")
		}
	}
	for _, t := range s.Taints {
		if t.Key == "" || !slices.Contains(taintEffects, t.Effect) {
			refuse("taint %q with effect %q, expected a key and one of %v", t.Key, t.Effect, taintEffects)
		}
	}
	return errors.Join(errs...)
}

// String returns the taint as k3s takes it: key=value:effect.
func (t Taint) String() string { return t.Key + "=" + t.Value + ":" + t.Effect }
