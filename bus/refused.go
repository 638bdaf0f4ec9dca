package bus

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"

	"github.com/nats-io/nats.go"
)

// ErrForbidden means that the NATS server does not let this process do what it
// tried: its credential lacks a permission. It comes with ErrUnavailable, because
// an operator can grant it, and nothing is lost until then.
var ErrForbidden = errors.New("the NATS server refuses it")

// refusedError is one refusal, in words for who can grant the permission.
type refusedError struct {
	verb    string // publish to, subscribe to
	subject string
	role    string // empty: this process has no role of its own
}

func (e *refusedError) Error() string {
	who, option := "this process", ""
	if e.role != "" {
		who, option = "role "+e.role, " --role "+e.role
	}
	return fmt.Sprintf("%s: %s may not %s %q; give its credential what 'k3s-autoscaler bus permissions%s' prints, and if the subject is not among it, run 'k3s-autoscaler bus provision' and set bus.provisioned",
		ErrForbidden, who, e.verb, e.subject, option)
}

func (e *refusedError) Is(target error) bool {
	return target == ErrForbidden || target == ErrUnavailable
}

// The server names the subject in its text alone.
var refusalText = regexp.MustCompile(`Permissions Violation for (Publish|Subscription) to "([^"]+)"`)

// readRefusal takes a refusal out of what the connection reports.
func readRefusal(role string, err error) *refusedError {
	if !errors.Is(err, nats.ErrPermissionViolation) {
		return nil
	}
	m := refusalText.FindStringSubmatch(err.Error())
	if m == nil {
		return nil
	}
	verb := "publish to"
	if m[1] == "Subscription" {
		verb = "subscribe to"
	}
	return &refusedError{verb: verb, subject: m[2], role: role}
}

// refusals ends the requests that the server refused. It says so apart from
// their answers, which never come: without this they would wait for their
// timeout and end without a reason.
type refusals struct {
	mu      sync.Mutex
	waiting map[*request]struct{}
}

// request waits for the answer to a message on a subject; its tokens may be
// wildcards where the client makes up a name.
type request struct {
	subject string
	cancel  context.CancelCauseFunc
}

func newRefusals() *refusals { return &refusals{waiting: map[*request]struct{}{}} }

// watch returns a context that ends when the server refuses the subject.
func (r *refusals) watch(ctx context.Context, subject string) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	q := &request{subject, cancel}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.waiting[q] = struct{}{}
	return ctx, func() {
		r.mu.Lock()
		delete(r.waiting, q)
		r.mu.Unlock()
		cancel(context.Canceled)
	}
}

func (r *refusals) refused(e *refusedError) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for q := range r.waiting {
		// Without its inbox the process receives no answer at all.
		if e.verb != "publish to" || matches(q.subject, e.subject) {
			q.cancel(e)
		}
	}
}

// matches reports whether a subject matches a pattern, as NATS does.
func matches(pattern, subject string) bool {
	ps, ss := strings.Split(pattern, "."), strings.Split(subject, ".")
	for i, p := range ps {
		switch {
		case p == ">":
			return len(ss) > i
		case i >= len(ss) || p != "*" && p != ss[i]:
			return false
		}
	}
	return len(ps) == len(ss)
}

// refusal is err, or the refusal that ended ctx.
func refusal(ctx context.Context, err error) error {
	var r *refusedError
	if err != nil && errors.As(context.Cause(ctx), &r) {
		return r
	}
	return err
}
