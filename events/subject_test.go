package events

import (
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestNodeNamesWithDotsBecomeOneSubjectToken(t *testing.T) {
	t.Parallel()
	for name, token := range map[string]string{"pi4.lan": "pi4_lan", "a": "a", "a-b.c-d.e": "a-b_c-d_e", ClusterKey: ClusterKey} {
		got, err := EncodeKey(name)
		require.NoError(t, err)
		require.Equal(t, token, got)
		back, err := DecodeKey(token)
		require.NoError(t, err)
		require.Equal(t, name, back)
	}
}

func TestWhatIsNoNodeNameIsRefused(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"", ".", "a..b", "A", "a_b", "-a", "a-", "a.", "*", ">", "a b", "_other", strings.Repeat("a", 254)} {
		_, err := EncodeKey(name)
		require.Error(t, err, name)
	}
	for _, token := range []string{"", "a.b", "_x", "A", "a__b"} {
		_, err := DecodeKey(token)
		require.Error(t, err, token)
	}
}

// FuzzKey: whatever is accepted is one safe subject token and comes back as it was.
func FuzzKey(f *testing.F) {
	for _, s := range []string{"pi4.lan", ClusterKey, "a_b", "a..b", "*", "x.y.z", "_"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		token, err := EncodeKey(name)
		if err == nil {
			if strings.ContainsAny(token, ".*> \t\r\n") || token == "" {
				t.Fatalf("token %q of %q is not one subject token", token, name)
			}
			back, err := DecodeKey(token)
			if err != nil || back != name {
				t.Fatalf("%q → %q → %q, %v", name, token, back, err)
			}
		}
		if key, err := DecodeKey(name); err == nil {
			again, err := EncodeKey(key)
			if err != nil || again != name {
				t.Fatalf("token %q → %q → %q, %v", name, key, again, err)
			}
		}
	})
}

func TestNamesAreCheckedAsTheStandardSays(t *testing.T) {
	t.Parallel()
	label := regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)
	subdomain := regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.OneOf(
			rapid.StringOfN(rapid.RuneFrom([]rune("a0z9-.")), 0, 6, -1),
			rapid.StringOfN(rapid.RuneFrom([]rune("ab-.A_é\n")), 0, 6, -1),
			rapid.StringOfN(rapid.RuneFrom([]rune("a-")), 60, 66, -1),
			rapid.StringOfN(rapid.RuneFrom([]rune("a.")), 250, 256, -1),
		).Draw(t, "name")
		require.Equal(t, label.MatchString(s), isLabel(s), "%q", s)
		require.Equal(t, len(s) <= 253 && subdomain.MatchString(s), isSubdomain(s), "%q", s)
	})
}
