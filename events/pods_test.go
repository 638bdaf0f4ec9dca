package events

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// fillAll gives everything that v has a value of its own, of which few are plain texts.
func fillAll(t *testing.T, v reflect.Value, name string) {
	t.Helper()
	switch x := v.Addr().Interface().(type) {
	case *string:
		*x = name + ` "ä<>&` + "\t\u2028"
	case *bool:
		*x = true
	case *time.Time:
		*x = time.Date(2026, 3, 1, 12, 0, 0, len(name), time.UTC)
	case *map[string]string:
		*x = map[string]string{name + "/key": name, "other": `a\"b`}
	default:
		switch v.Kind() {
		case reflect.Pointer:
			v.Set(reflect.New(v.Type().Elem()))
			fillAll(t, v.Elem(), name)
		case reflect.Slice:
			v.Set(reflect.MakeSlice(v.Type(), 2, 2))
			for i := range 2 {
				fillAll(t, v.Index(i), name)
			}
		case reflect.Struct:
			for i := range v.NumField() {
				fillAll(t, v.Field(i), v.Type().Field(i).Name)
			}
		default:
			t.Fatalf("%s is a %s: teach this test", name, v.Type())
		}
	}
}

func fullPod(t *testing.T) SnapshotPod {
	t.Helper()
	var p SnapshotPod
	fillAll(t, reflect.ValueOf(&p).Elem(), "pod")
	return p
}

func TestEveryFieldOfAPodIsReadTheFastWay(t *testing.T) {
	t.Parallel()
	bare := SnapshotPod{Namespace: "ns", Name: "web", Phase: "Running"}
	for name, pods := range map[string][]SnapshotPod{"all of them": {fullPod(t), bare, fullPod(t)}, "one": {bare}} {
		want := SnapshotChanged{Epoch: 1, Base: "a", Digest: "b", CapturedAt: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC),
			Changed: SnapshotObjects{Nodes: []SnapshotNode{{Name: "n", Capacity: Resources{Pods: 110}}}, Pods: pods, Namespaces: []SnapshotNamespace{{Name: `pods":[{`}}}}
		data, err := json.Marshal(want)
		require.NoError(t, err)
		got, rest, ok := cutPods(data)
		require.True(t, ok, "podReader does not know a field: %s", name)
		require.Equal(t, pods, got)
		require.Less(t, len(rest), len(data))

		var all SnapshotChanged
		require.NoError(t, unmarshal(data, &all))
		require.Equal(t, want, all)
		var captured SnapshotCaptured
		data, err = json.Marshal(SnapshotCaptured{Epoch: 1, Objects: want.Changed})
		require.NoError(t, err)
		require.NoError(t, unmarshal(data, &captured))
		require.Equal(t, want.Changed, captured.Objects)
	}
}

func TestPodsThatAreWrittenOtherwiseAreReadAsWell(t *testing.T) {
	t.Parallel()
	for name, data := range map[string]string{
		"white space":            `{"changed": {"pods":[{"name": "a", "phase":"Running"}] } }`,
		"an unknown field":       `{"changed":{"pods":[{"name":"a","future":{"x":[1,{"y":null}]}}]}}`,
		"null":                   `{"changed":{"pods":[{"name":"a","owner":null,"annotations":null}]}}`,
		"another case":           `{"changed":{"pods":[{"Name":"a"}]}}`,
		"a field given twice":    `{"changed":{"pods":[{"annotations":{"a":"1"},"annotations":{"b":"2"},"owner":{"kind":"a"},"owner":{"name":"b"}}]}}`,
		"volumes given twice":    `{"changed":{"pods":[{"local_storage":[{"name":"a","kind":"b"}],"local_storage":[{"name":"c"}]}]}}`,
		"pods given twice":       `{"changed":{"pods":[{"name":"a"}]},"changed":{"pods":[{"name":"b"}]}}`,
		"pods of another":        `{"future":{"pods":[{"name":"a"}]},"changed":{"nodes":[{"name":"n"}]}}`,
		"pods of another, too":   `{"future":{"pods":[{"name":"a"}]},"changed":{"pods":[]}}`,
		"bytes that are no text": `{"changed":{"pods":[{"name":"a` + "\xff" + `"}]}}`,
		"no pods":                `{"changed":{"nodes":[{"name":"n"}]}}`,
		"no volumes":             `{"changed":{"pods":[{"local_storage":[]}]}}`,
	} {
		var want, got SnapshotChanged
		require.NoError(t, json.Unmarshal([]byte(data), &want), name)
		require.NoError(t, unmarshal([]byte(data), &got), name)
		require.Equal(t, want, got, name)
	}
}

func TestWhatIsWrongWithASnapshotIsSaid(t *testing.T) {
	t.Parallel()
	for _, data := range []string{
		`{"changed":{"pods":[{"name":7}]}}`, `{"changed":{"pods":[{"created_at":"yesterday"}]}}`, `{"changed":{"pods":[{"deleting":truth}]}}`,
		`{"changed":{"pods":[{"name":"a"}`, `{"changed":{"pods":[{"name":"a"`, `{"changed":{"pods":[{"name":"a"},]}}`, `{"changed":{"pods":[{"name":"a`,
		`{"changed":{"pods":[{"name":"a` + "\n" + `"}]}}`, `{"epoch":"x","changed":{"pods":[{"name":"a"}]}}`, `{"changed":{"pods":[{"name":"\q"}]}}`,
		`{"changed":{"pods":[{"name":"a"}]}`,
	} {
		var got SnapshotChanged
		require.EqualError(t, unmarshal([]byte(data), &got), json.Unmarshal([]byte(data), new(SnapshotChanged)).Error(), data)
	}
}

// What is read the fast way is what encoding/json reads.
func FuzzAPodIsReadAsEncodingJSONReadsIt(f *testing.F) {
	for _, p := range []SnapshotPod{{Namespace: "ns", Name: "a"}, {Owner: &OwnerRef{Kind: "Job", Name: "b"}, Phase: "Pending", Deleting: true,
		Annotations: map[string]string{"a": "b"}, LocalStorage: []LocalVolume{{Name: "a", Kind: "b"}}, UnschedulableMessage: "<ä"}} {
		data, err := json.Marshal(p)
		require.NoError(f, err)
		f.Add(string(data))
	}
	f.Add(`{"uid":"a\u00e4","class":"\ud800","created_at":"2026-03-01T12:00:00.5+01:00","mirror":false}`)
	f.Fuzz(func(t *testing.T, data string) {
		r, got := podReader{data: []byte(data), known: map[string]string{}}, SnapshotPod{}
		if !r.pod(&got) || r.at != len(data) {
			return
		}
		var want SnapshotPod
		require.NoError(t, json.Unmarshal([]byte(data), &want))
		require.Equal(t, want, got)
	})
}
