// Package lifecycle says which states a node of ours, and its drain, can be
// in, what moves them on, until when, and what undoes it.
//
// Both are tables (nodes, drains): the handlers look the next state up and
// refuse what is not there, so that no path exists that the tables don't show.
// The package is pure: no I/O, no clock, nothing but the standard library.
package lifecycle
