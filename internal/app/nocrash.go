//go:build !crashtest

package app

// crashHook does nothing in the product; the end-to-end tests build with the
// tag crashtest to end the process at named steps.
func crashHook() func(step string) { return nil }
