package scaling

import (
	"fmt"
	"regexp"
)

// Operators of a Matcher, as Alertmanager writes them.
const (
	MatchEqual     = "="
	MatchNotEqual  = "!="
	MatchRegexp    = "=~"
	MatchNotRegexp = "!~"
)

// Matcher is one condition on a label in Alertmanager's terms: a label that is
// missing is the empty string, and a regular expression (RE2) matches the
// whole value.
type Matcher struct{ Label, Op, Value string }

// Matches reports whether the labels meet the condition. The error says which
// part of the matcher is wrong; such a matcher matches nothing.
func (m Matcher) Matches(labels map[string]string) (bool, error) {
	v := labels[m.Label]
	switch m.Op {
	case MatchEqual:
		return v == m.Value, nil
	case MatchNotEqual:
		return v != m.Value, nil
	case MatchRegexp, MatchNotRegexp:
		// Compiled alone first: a stray parenthesis must not escape the anchors.
		if _, err := regexp.Compile(m.Value); err != nil {
			return false, fmt.Errorf("matcher %s: %w", m, err)
		}
		re, err := regexp.Compile("^(?s:" + m.Value + ")$")
		if err != nil {
			return false, fmt.Errorf("matcher %s: %w", m, err)
		}
		return re.MatchString(v) == (m.Op == MatchRegexp), nil
	}
	return false, fmt.Errorf("matcher %s: operator is %q, expected one of = != =~ !~", m, m.Op)
}

func (m Matcher) String() string { return fmt.Sprintf("%s%s%q", m.Label, m.Op, m.Value) }

// matches reports whether an alert meets every matcher of the rule. A rule
// without matchers, or with a broken one, matches nothing: a mistake in a rule
// must not turn every alert into a node.
func (r AlertRule) matches(labels map[string]string) (bool, error) {
	if len(r.Matchers) == 0 {
		return false, fmt.Errorf("rule %s: has no matchers", r.Name)
	}
	for _, m := range r.Matchers {
		ok, err := m.Matches(labels)
		if err != nil || !ok {
			return false, err
		}
	}
	return true, nil
}
