package config

import (
	"os"
	"testing"
)

// FuzzParse: a file of any content is read or refused with problems that have
// a message; it never panics and never yields a pool whose limits contradict.
func FuzzParse(f *testing.F) {
	full, err := os.ReadFile("testdata/full.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, s := range []string{string(full), minimal, "", "a: [", "clusters: &a [*a]", minimal + "bus: {url: '${env:X}'}", "? a\n: b", "- !!binary x", "a: |\n x", "\"\\", "{a: b}: c"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := load("f.yaml", data, lookup{dir: "testdata", env: func(string) (string, bool) { return "1", true }}, false)
		if err != nil {
			errs, ok := err.(*Errors) //nolint:errorlint // Parse promises this type
			if !ok || len(errs.Problems) == 0 {
				t.Fatalf("not a list of problems: %v", err)
			}
			for _, p := range errs.Problems {
				if p.Message == "" || p.Line < 0 {
					t.Fatalf("a problem without message or place: %+v", p)
				}
			}
			return
		}
		for _, cl := range c.Clusters {
			for _, p := range cl.Pools {
				if p.Min > p.Max || p.CPU <= 0 || p.Memory <= 0 || p.RegisterDeadline <= 0 {
					t.Fatalf("accepted a pool that can't be: %+v", p)
				}
			}
			if _, err := Digest(c.Policy(cl.Name), false); err != nil {
				t.Fatal(err)
			}
		}
	})
}
