package kube

import (
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// Errors of this package, to be tested with errors.Is.
var (
	// ErrNotFound says that the object is not there, or no longer the one that
	// was meant (another uid). Where the wish was to be rid of it, it is success.
	ErrNotFound = errors.New("not found")
	// ErrForbidden says that the credential lacks a right.
	ErrForbidden = errors.New("forbidden")
	// ErrNotOurs says that the node does not carry the claim label with the
	// claim it was to be removed for. It is never touched.
	ErrNotOurs = errors.New("node does not belong to this claim")
	// ErrReplaced says that another node object carries the name by now.
	ErrReplaced = errors.New("node object was replaced by another one of the same name")
)

// EvictionBlocked says that the API server refuses an eviction for now.
type EvictionBlocked struct {
	// PDB is "namespace/name" of the disruption budget that forbids it; empty
	// when the server names none.
	PDB string
	// Message is the server's own, naming the budget and its numbers.
	Message string
	// RetryAfter is when the server wants to be asked again; 0 where it does
	// not say, as for a budget that is used up.
	RetryAfter time.Duration
}

func (e *EvictionBlocked) Error() string {
	if e.PDB == "" {
		return "eviction refused: " + e.Message
	}
	return fmt.Sprintf("eviction refused by disruption budget %s: %s", e.PDB, e.Message)
}

// expected reports whether err is an answer rather than a failure.
func expected(err error) bool {
	return err == nil || apierrors.IsNotFound(err) || apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) || apierrors.IsTooManyRequests(err)
}

// wrap names the act, and turns the server's "not found" into ours.
func wrap(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	act := fmt.Sprintf(format, args...)
	switch {
	case apierrors.IsNotFound(err):
		return fmt.Errorf("%s: %w: %s", act, ErrNotFound, err.Error())
	case apierrors.IsForbidden(err):
		return fmt.Errorf("%s: %w: %w", act, ErrForbidden, err)
	}
	return fmt.Errorf("%s: %w", act, err)
}
