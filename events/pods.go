package events

import (
	"bytes"
	"encoding/json"
	"time"
	"unicode/utf8"
)

// podded is a snapshot: nearly all of its JSON are pods, tens of thousands of them.
type podded interface{ podsAt() *[]SnapshotPod }

func (p *SnapshotCaptured) podsAt() *[]SnapshotPod { return &p.Objects.Pods }
func (p *SnapshotChanged) podsAt() *[]SnapshotPod  { return &p.Changed.Pods }

// unmarshal is json.Unmarshal, faster for snapshots.
func unmarshal(data []byte, into any) error {
	s, ok := into.(podded)
	if !ok {
		return json.Unmarshal(data, into)
	}
	if pods, rest, ok := cutPods(data); ok && json.Unmarshal(rest, into) == nil {
		at := s.podsAt()
		if *at != nil && len(*at) == 0 {
			*at = pods
			return nil
		}
		*at = nil // they were cut out of something else
	}
	return json.Unmarshal(data, into)
}

// cutPods reads the pods of a snapshot, and returns it without them. ok is false when
// they are not written as this package writes them: encoding/json reads all that is
// valid, at a third of the speed, and says what is wrong with what is not.
func cutPods(data []byte) (pods []SnapshotPod, rest []byte, ok bool) {
	key := []byte(`"pods":[`) // in a text the quotes would be escaped
	begin := bytes.Index(data, append(key, '{'))
	if begin < 0 {
		return nil, nil, false
	}
	begin += len(key)
	r := podReader{data: data, at: begin, known: map[string]string{}}
	pods = make([]SnapshotPod, 0, bytes.Count(data[begin:], []byte(`"phase":`))) // few others have that
	for {
		pods = append(pods, SnapshotPod{})
		if !r.pod(&pods[len(pods)-1]) {
			return nil, nil, false
		}
		if r.next(']') {
			break
		}
		if !r.next(',') {
			return nil, nil, false
		}
	}
	end := r.at - 1
	if bytes.Contains(data[end:], key) { // which are meant?
		return nil, nil, false
	}
	rest = make([]byte, 0, begin+len(data)-end)
	return pods, append(append(rest, data[:begin]...), data[end:]...), true
}

// podReader reads JSON without white space. Its methods return false for what is
// unknown or written otherwise.
type podReader struct {
	data  []byte
	at    int
	known map[string]string // texts that many pods share
}

func (r *podReader) pod(p *SnapshotPod) bool {
	return r.object(func(key []byte) bool {
		switch string(key) {
		case "namespace":
			return r.shared(&p.Namespace)
		case "name":
			return r.text(&p.Name)
		case "uid":
			return r.text(&p.UID)
		case "class":
			return r.shared(&p.Class)
		case "node":
			return r.shared(&p.Node)
		case "nominated_node":
			return r.shared(&p.NominatedNode)
		case "phase":
			return r.shared(&p.Phase)
		case "created_at":
			return r.instant(&p.CreatedAt)
		case "deleting":
			return r.flag(&p.Deleting)
		case "owner":
			return r.owner(&p.Owner)
		case "mirror":
			return r.flag(&p.Mirror)
		case "gated":
			return r.flag(&p.Gated)
		case "annotations":
			return r.annotations(&p.Annotations)
		case "local_storage":
			return r.volumes(&p.LocalStorage)
		case "unschedulable_since":
			return r.instant(&p.UnschedulableSince)
		case "unschedulable_message":
			return r.shared(&p.UnschedulableMessage)
		case "volume_problem":
			return r.shared(&p.VolumeProblem)
		}
		return false
	})
}

func (r *podReader) owner(to **OwnerRef) bool {
	if *to != nil { // given twice
		return false
	}
	o := &OwnerRef{}
	*to = o
	return r.object(func(key []byte) bool {
		switch string(key) {
		case "kind":
			return r.shared(&o.Kind)
		case "name":
			return r.shared(&o.Name)
		}
		return false
	})
}

func (r *podReader) annotations(to *map[string]string) bool {
	if *to != nil {
		return false
	}
	all := map[string]string{}
	*to = all
	return r.object(func(key []byte) bool {
		var name, value string
		name = r.share(key)
		if !r.shared(&value) {
			return false
		}
		all[name] = value
		return true
	})
}

func (r *podReader) volumes(to *[]LocalVolume) bool {
	if *to != nil || !r.next('[') || r.next(']') {
		return false
	}
	for {
		var v LocalVolume
		ok := r.object(func(key []byte) bool {
			switch string(key) {
			case "name":
				return r.shared(&v.Name)
			case "kind":
				return r.shared(&v.Kind)
			}
			return false
		})
		*to = append(*to, v)
		if !ok || r.next(']') {
			return ok
		}
		if !r.next(',') {
			return false
		}
	}
}

// object reads an object: its keys, without escapes, and with member their values.
func (r *podReader) object(member func(key []byte) bool) bool {
	if !r.next('{') {
		return false
	}
	if r.next('}') {
		return true
	}
	for {
		key, plain, ok := r.quoted()
		if !ok || !plain || !r.next(':') || !member(key[1:len(key)-1]) {
			return false
		}
		if r.next('}') {
			return true
		}
		if !r.next(',') {
			return false
		}
	}
}

func (r *podReader) next(c byte) bool {
	if r.at < len(r.data) && r.data[r.at] == c {
		r.at++
		return true
	}
	return false
}

// quoted is a text with its quotes, and whether it is plain: nothing in it is escaped.
func (r *podReader) quoted() (all []byte, plain, ok bool) {
	if r.at >= len(r.data) || r.data[r.at] != '"' {
		return nil, false, false
	}
	ascii := true
	plain = true
	for i := r.at + 1; i < len(r.data); i++ {
		switch c := r.data[i]; {
		case c == '"':
			all, r.at = r.data[r.at:i+1], i+1
			return all, plain, ascii || utf8.Valid(all)
		case c == '\\':
			plain = false
			i++
		case c < ' ':
			return nil, false, false
		case c >= utf8.RuneSelf:
			ascii = false
		}
	}
	return nil, false, false
}

func (r *podReader) text(to *string) bool {
	all, plain, ok := r.quoted()
	switch {
	case !ok:
		return false
	case plain:
		*to = string(all[1 : len(all)-1])
		return true
	}
	return json.Unmarshal(all, to) == nil
}

// shared is text for what many pods have in common: they share its memory.
func (r *podReader) shared(to *string) bool {
	all, plain, ok := r.quoted()
	switch {
	case !ok:
		return false
	case plain:
		*to = r.share(all[1 : len(all)-1])
		return true
	}
	return json.Unmarshal(all, to) == nil
}

func (r *podReader) share(b []byte) string {
	s, ok := r.known[string(b)]
	if !ok {
		s = string(b)
		r.known[s] = s
	}
	return s
}

func (r *podReader) instant(to *time.Time) bool {
	all, _, ok := r.quoted()
	return ok && to.UnmarshalJSON(all) == nil
}

func (r *podReader) flag(to *bool) bool {
	switch rest := r.data[r.at:]; {
	case bytes.HasPrefix(rest, []byte("true")):
		*to, r.at = true, r.at+len("true")
	case bytes.HasPrefix(rest, []byte("false")):
		*to, r.at = false, r.at+len("false")
	default:
		return false
	}
	return true
}
