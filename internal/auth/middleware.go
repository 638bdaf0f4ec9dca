package auth

import (
	"context"
	"net/http"
)

type callerKey struct{}

// CallerFrom returns the caller that Middleware found.
func CallerFrom(ctx context.Context) (Caller, bool) {
	c, ok := ctx.Value(callerKey{}).(Caller)
	return c, ok
}

// WithCaller puts a caller into a context.
func WithCaller(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// Refuse answers a call that may not pass; reason is ErrNoToken or
// ErrUnknownToken.
type Refuse func(w http.ResponseWriter, r *http.Request, reason error)

// Middleware lets a call pass when its path is open or its token is known.
// Everything is closed that open does not name, unknown paths included.
func Middleware(t *Tokens, open func(path string) bool, refuse Refuse, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if open(r.URL.Path) {
			next.ServeHTTP(w, r)
			return
		}
		caller, err := t.Authenticate(r.Header.Get("Authorization"))
		if err != nil {
			refuse(w, r, err)
			return
		}
		next.ServeHTTP(w, r.WithContext(WithCaller(r.Context(), caller)))
	})
}
