package events

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// fill sets every field of v to a fixed value of its kind, so that a golden
// file shows the whole payload and a new field changes it.
func fill(v reflect.Value, name string) {
	switch v.Interface().(type) {
	case time.Time:
		v.Set(reflect.ValueOf(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)))
		return
	case Duration:
		v.Set(reflect.ValueOf(Duration(90 * time.Second)))
		return
	case Raw:
		v.Set(reflect.ValueOf(Raw(`{"pools":{}}`)))
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), name)
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i), strings.ToLower(v.Type().Field(i).Name))
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0), name)
	case reflect.Map:
		key, val := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(key, name)
		fill(val, name)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(key, val)
	case reflect.String:
		v.SetString(word(name))
	case reflect.Int, reflect.Int32, reflect.Int64:
		v.SetInt(2)
	case reflect.Uint64:
		v.SetUint(7)
	case reflect.Float64:
		v.SetFloat(0.5)
	case reflect.Bool:
		v.SetBool(true)
	}
}

// word gives fields with a closed set of values one of them.
func word(name string) string {
	for suffix, w := range map[string]string{
		"status": AlertFiring, "action": ActionUp, "handler": HandlerDraining, "goal": GoalRemove,
		"step": StepNodeDeleted, "what": ObservedReady, "kind": DivergedNodeLost, "node": "burst-0a1b2c3d4e", "pool": "burst",
		"source": SignalQueried, "ondeadline": DeadlineForce, "localstorage": PodsDelete, "unmanaged": PodsDelete,
	} {
		if name == suffix {
			return w
		}
	}
	return name
}

// example returns a full payload of a type.
func example(t *testing.T, d Definition) Payload {
	t.Helper()
	p := d.NewPayload()
	fill(reflect.ValueOf(p).Elem(), "")
	for typ, verdict := range map[string]string{TypeScaleupDecided: VerdictUp, TypeScaledownDecided: VerdictDown, TypeScaleHeld: VerdictHeld} {
		if d.Type == typ {
			reflect.ValueOf(p).Elem().FieldByName("Verdict").SetString(verdict)
		}
	}
	if x, ok := p.(*ShadowDecided); ok {
		x.Effect = EffectAdd
	}
	require.NoError(t, p.Validate())
	return p
}

func exampleEvent(t *testing.T, d Definition) Event {
	t.Helper()
	m := Meta{Cluster: "home", Publisher: d.Publishers[0], ID: "evt-1", Time: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC),
		CorrelationID: "life-1", CausationID: "evt-0", TraceParent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
	if d.Key == KeyNode {
		m.Node = "burst-0a1b2c3d4e"
	}
	// example returns a pointer; the catalogue's payloads are values.
	e, err := New(m, reflect.ValueOf(example(t, d)).Elem().Interface().(Payload))
	require.NoError(t, err)
	return e
}

func TestEveryTypeOfTheCatalogueEncodesAsItsGoldenFile(t *testing.T) {
	t.Parallel()
	for _, d := range Catalog() {
		t.Run(d.Type, func(t *testing.T) {
			t.Parallel()
			e := exampleEvent(t, d)
			got, err := json.MarshalIndent(e, "", "  ")
			require.NoError(t, err)
			file := filepath.Join("testdata", strings.TrimPrefix(d.Type, TypePrefix)+".golden.json")
			if *update {
				require.NoError(t, os.WriteFile(file, append(got, '\n'), 0o644))
			}
			want, err := os.ReadFile(file)
			require.NoError(t, err, "run go test ./events -update and look at what it wrote")
			require.Equal(t, string(want), string(got)+"\n", "the wire format of %s changed: it is additive within a version", d.Type)

			var back Event
			require.NoError(t, json.Unmarshal(want, &back))
			require.NoError(t, Check(back))
			p := d.NewPayload()
			var compact bytes.Buffer
			require.NoError(t, json.Compact(&compact, back.Data()))
			require.NoError(t, json.Unmarshal(compact.Bytes(), p))
			require.Equal(t, example(t, d), p, "a payload survives the round trip")
		})
	}
}

func TestNoGoldenFileIsLeftOfATypeThatIsGone(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.golden.json")
	require.NoError(t, err)
	require.Len(t, files, len(Catalog()))
}

func TestSubjectsAndSuffixesComeFromTheCatalogue(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, d := range Catalog() {
		e := exampleEvent(t, d)
		s, err := Subject(e)
		require.NoError(t, err)
		require.False(t, seen[s], "two types share the subject %s", s)
		seen[s] = true
		if Addressed(d.Type) {
			noun, rest, _ := strings.Cut(d.Suffix(), ".")
			require.Equal(t, "k3sas.home.node._cluster."+noun+".draining."+rest, s)
			continue
		}
		require.True(t, strings.HasSuffix(s, "."+d.Suffix()), s)
	}
	require.True(t, seen["k3sas.home.node.burst-0a1b2c3d4e.node.drain.requested"])
	require.Equal(t, []string{"node.drain.requested", "node.drain.cancelled", "timer.draining.fired",
		"deadletter.draining.redrive.requested", "deadletter.draining.drop.requested", "deadletter.draining.redriven"}, Suffixes(HandlerDraining))
	require.Empty(t, Suffixes("nobody"))
}

func TestDecodeRefusesWhatItCannotUnderstandForGood(t *testing.T) {
	t.Parallel()
	d, _ := Lookup(TypeScaleRequested)
	good := exampleEvent(t, d)
	_, err := Decode[ScaleRequested](good)
	require.NoError(t, err)

	var de *DecodeError
	_, err = Decode[PoolPaused](good)
	require.ErrorAs(t, err, &de)
	require.ErrorContains(t, err, `type: is "dev.k3s-autoscaler.scale.requested.v1", expected "dev.k3s-autoscaler.pool.paused.v1"`)

	broken := good.Clone()
	require.NoError(t, broken.SetData("application/json", []byte(`{"action":`)))
	_, err = Decode[ScaleRequested](broken)
	require.ErrorAs(t, err, &de)

	incomplete := good.Clone()
	require.NoError(t, incomplete.SetData("application/json", []byte(`{"action":"sideways","count":0}`)))
	_, err = Decode[ScaleRequested](incomplete)
	require.ErrorContains(t, err, `action: is "sideways", expected one of up, down, to`)
	require.ErrorContains(t, err, "actor: is empty")
	require.ErrorContains(t, err, "reason: is empty")
}

func TestAnUnknownFieldIsAcceptedSinceTypesAreAdditive(t *testing.T) {
	t.Parallel()
	d, _ := Lookup(TypePoolPaused)
	e := exampleEvent(t, d)
	require.NoError(t, e.SetData("application/json", []byte(`{"pool":"p","actor":"a","reason":"r","from_the_future":1}`)))
	p, err := Decode[PoolPaused](e)
	require.NoError(t, err)
	require.Equal(t, "p", p.Pool)
}

func TestNewNamesEveryFieldThatIsWrong(t *testing.T) {
	t.Parallel()
	_, err := New(Meta{Cluster: "Home!", Node: "n"}, PoolPaused{Pool: strings.Repeat("p", 53)})
	require.Error(t, err)
	for _, part := range []string{`cluster: is "Home!"`, `node: is "n", must be empty`, "publisher: is empty", "id: is empty", "time: is zero", "pool: is", "actor: is empty"} {
		require.ErrorContains(t, err, part)
	}
	_, err = New(Meta{Cluster: "home", Publisher: "decision", ID: "1", Time: time.Unix(1, 0)}, NodeLost{Node: "n", Reason: Reason{Code: "X"}})
	require.ErrorContains(t, err, "a node name is required")
}

func TestCheckRefusesAPartitionKeyOfTheWrongKind(t *testing.T) {
	t.Parallel()
	d, _ := Lookup(TypePoolPaused)
	e := exampleEvent(t, d)
	e.SetExtension(ExtPartitionKey, "home/worker-1")
	require.ErrorContains(t, Check(e), "needs a cluster key")
	e.SetExtension(ExtPartitionKey, "home")
	require.ErrorContains(t, Check(e), `expected "<cluster>/<node>"`)
	e.SetExtension(ExtPartitionKey, "home/Bad_Node")
	require.ErrorContains(t, Check(e), "expected a Kubernetes node name")
	e.SetType("dev.k3s-autoscaler.nothing.happened.v1")
	require.ErrorContains(t, Check(e), "not in the catalogue")
}

func TestDryRunIsMarkedOnTheEventItself(t *testing.T) {
	t.Parallel()
	e, err := New(Meta{Cluster: "home", Publisher: "decision", ID: "1", Time: time.Unix(1, 0), DryRun: true}, PoolFrozen{Pool: "p"})
	require.NoError(t, err)
	require.True(t, IsDryRun(e))
	d, _ := Lookup(TypePoolPaused)
	require.False(t, IsDryRun(exampleEvent(t, d)))
}

func TestIDsDifferWhereTheirPartsDo(t *testing.T) {
	t.Parallel()
	require.Equal(t, ID("a", "b"), ID("a", "b"))
	require.NotEqual(t, ID("ab", "c"), ID("a", "bc"))
	require.Regexp(t, `^[0-9a-v]{32}$`, ID("a"))
	require.Regexp(t, `^burst-[0-9a-v]{10}$`, NodeName("burst", "claim"))
}
