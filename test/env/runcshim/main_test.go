package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

func TestBoundingSetIsReadFromStatus(t *testing.T) {
	t.Parallel()
	got, err := boundingSet([]byte("Name:\tx\nCapEff:\t0000000000000000\nCapBnd:\t000001fffeffffff\n"))
	if err != nil || got != 0x1fffeffffff {
		t.Fatalf("got %x, %v", got, err)
	}
	if have := granted(got); have["CAP_SYS_RESOURCE"] || !have["CAP_SYS_ADMIN"] || !have["CAP_CHECKPOINT_RESTORE"] {
		t.Fatalf("granted %v", have)
	}
	if _, err := boundingSet([]byte("Name:\tx\n")); err == nil {
		t.Fatal("a status without CapBnd is no error")
	}
}

func TestConfigFileIsFoundInTheArgumentsOfRunc(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--root", "/r", "create", "--bundle", "/b", "--pid-file", "/p", "id"}, "/b/config.json"},
		{[]string{"run", "--bundle=/b", "id"}, "/b/config.json"},
		{[]string{"create", "-b", "/b", "id"}, "/b/config.json"},
		{[]string{"create", "id"}, "config.json"},
		{[]string{"exec", "--process", "/p.json", "id"}, "/p.json"},
		{[]string{"--root", "/r", "delete", "id"}, ""},
		{[]string{"state", "id"}, ""},
	} {
		if got := configFile(c.args); got != c.want {
			t.Errorf("%v: got %q, want %q", c.args, got, c.want)
		}
	}
}

func TestOnlyMissingCapabilitiesAreTakenOut(t *testing.T) {
	t.Parallel()
	have := map[string]bool{"CAP_CHOWN": true}
	for name, config := range map[string]string{
		"bundle":  `{"linux":{"size":9223372036854775807},"process":{"capabilities":{"bounding":["CAP_CHOWN","CAP_SYS_RESOURCE"]}}}`,
		"process": `{"capabilities":{"bounding":["CAP_SYS_RESOURCE","CAP_CHOWN"]},"linux":{"size":9223372036854775807}}`,
	} {
		file := filepath.Join(t.TempDir(), "config.json")
		if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := rewrite(file, have); err != nil {
			t.Fatal(err)
		}
		var got struct {
			Linux        struct{ Size int64 }
			Capabilities map[string][]string
			Process      struct{ Capabilities map[string][]string }
		}
		content, _ := os.ReadFile(file)
		if err := json.Unmarshal(content, &got); err != nil {
			t.Fatal(err)
		}
		sets := got.Capabilities
		if name == "bundle" {
			sets = got.Process.Capabilities
		}
		if !reflect.DeepEqual(sets["bounding"], []string{"CAP_CHOWN"}) {
			t.Errorf("%s: left %v", name, sets)
		}
		if got.Linux.Size != 9223372036854775807 {
			t.Errorf("%s: a large number became %d", name, got.Linux.Size)
		}
	}
}

func TestAConfigurationWithoutCapabilitiesStaysAsItIs(t *testing.T) {
	t.Parallel()
	got, err := strip([]byte(`{"process":{"args":["x"]}}`), nil)
	if err != nil || string(got) != `{"process":{"args":["x"]}}` {
		t.Fatalf("got %s, %v", got, err)
	}
	if _, err := strip([]byte(`{`), nil); err == nil {
		t.Fatal("broken JSON is no error")
	}
}
