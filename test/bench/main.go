// Command bench measures every figure that the product promises, beside its
// target, and fails on a clear miss:
//
//	go run ./test/bench [-runs 5] [-only REGEXP] [-out docs/benchmarks.md]
//
// The figures "end to end" build and start the environment of the end-to-end tests,
// as root on Debian; "decide" needs nothing but Go.
//
// A figure is the median of its runs. Where it is a ratio, both sides are
// measured in the same run, one right after the other and in alternating order,
// so that other work on the machine weighs on both.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"runtime/pprof"
	"slices"
	"strings"
	"syscall"
	"time"
)

// tolerance is how far a figure may miss its target before the command fails:
// machines are noisy.
const tolerance = 0.30

// figure is one promise that can be measured.
type figure struct {
	name string
	// how names what is compared: sync and ack mode, sizes.
	how    string
	unit   string
	target float64 // 0: none, the figure is printed
	atMost bool    // the target is an upper bound
	once   bool    // it takes long: one run
	// prepare makes what the runs share; nil: nothing.
	prepare func(ctx context.Context) error
	// measure runs once; odd runs begin with the other side of a ratio.
	measure func(ctx context.Context, odd bool) (sample, error)
}

// sample is the result of one run.
type sample struct {
	value  float64
	detail string // both sides of a ratio
}

// result is a figure with its samples.
type result struct {
	figure
	samples []sample
}

func (r result) median() sample {
	s := slices.Clone(r.samples)
	slices.SortFunc(s, func(a, b sample) int {
		switch {
		case a.value < b.value:
			return -1
		case a.value > b.value:
			return 1
		}
		return 0
	})
	return s[len(s)/2]
}

// miss is by which share the median misses the target; 0 or less: it does not.
func (r result) miss() float64 {
	v := r.median().value
	if r.target == 0 {
		return 0
	}
	if r.atMost {
		return v/r.target - 1
	}
	return 1 - v/r.target
}

func (r result) verdict() string {
	switch m := r.miss(); {
	case r.target == 0:
		return "measured"
	case m <= 0:
		return "met"
	case m <= tolerance:
		return fmt.Sprintf("missed by %.0f %%", 100*m)
	default:
		return fmt.Sprintf("MISSED by %.0f %%", 100*m)
	}
}

func main() {
	if spec := os.Getenv(childEnv); spec != "" {
		if err := child(spec); err != nil {
			fmt.Fprintln(os.Stderr, "bench child:", err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	runs := flags.Int("runs", 5, "runs of each figure; the median counts")
	only := flags.String("only", "", "regular expression of the figures to measure")
	profile := flags.String("cpuprofile", "", "file to write a CPU profile of this process to")
	file := flags.String("out", "", "file to write the table to")
	if err := flags.Parse(args); err != nil {
		return err
	}
	match, err := regexp.Compile(*only)
	if err != nil {
		return fmt.Errorf("-only: %w", err)
	}
	w, err := newWorld()
	if err != nil {
		return err
	}
	defer w.close()
	if *profile != "" {
		f, err := os.Create(*profile)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	var results []result
	for _, f := range slices.Concat(w.figures(), w.sizes(), decisions(), w.latencies(), []figure{w.threshold()}) {
		if !match.MatchString(f.name) {
			continue
		}
		r, err := measure(ctx, f, *runs, out)
		if err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		results = append(results, r)
	}
	if len(results) == 0 {
		return fmt.Errorf("-only %q matches no figure", *only)
	}
	table := markdown(results, *runs)
	fmt.Fprint(out, "\n", table)
	if *file != "" {
		if err := os.WriteFile(*file, []byte(table), 0o644); err != nil {
			return err
		}
	}
	var missed []string
	for _, r := range results {
		if r.miss() > tolerance {
			missed = append(missed, r.name)
		}
	}
	if len(missed) > 0 {
		return fmt.Errorf("missed by over %.0f %%: %s", 100*tolerance, strings.Join(missed, ", "))
	}
	return nil
}

func measure(ctx context.Context, f figure, runs int, out io.Writer) (result, error) {
	r := result{figure: f}
	fmt.Fprintf(out, "%s (%s)\n", f.name, f.how)
	if f.prepare != nil {
		if err := f.prepare(ctx); err != nil {
			return r, err
		}
	}
	if f.once {
		runs = 1
	}
	for i := range runs {
		begin := time.Now()
		s, err := f.measure(ctx, i%2 == 1)
		if err != nil {
			return r, err
		}
		r.samples = append(r.samples, s)
		fmt.Fprintf(out, "  run %d: %.3g %s   %s   (%.0f s)\n", i+1, s.value, f.unit, s.detail, time.Since(begin).Seconds())
	}
	fmt.Fprintf(out, "  median %.3g %s, target %s: %s\n", r.median().value, f.unit, r.bound(), r.verdict())
	return r, nil
}

func (f figure) bound() string {
	if f.target == 0 {
		return "none"
	}
	sign := "≥"
	if f.atMost {
		sign = "≤"
	}
	return fmt.Sprintf("%s %g %s", sign, f.target, f.unit)
}

func markdown(results []result, runs int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Benchmarks\n\nThe last output of `make bench`: %s, commit %s. Each figure is the median of %d runs; ratios have both sides in the same run. ", time.Now().UTC().Format("2006-01-02"), commit(), runs)
	fmt.Fprintf(&b, "The command fails when a figure misses its target by over %.0f %%.\n\n", 100*tolerance)
	b.WriteString("| figure | median | target | | sides of the median run | all runs |\n|---|---|---|---|---|---|\n")
	for _, r := range results {
		all := make([]string, len(r.samples))
		for i, s := range r.samples {
			all[i] = fmt.Sprintf("%.3g", s.value)
		}
		m := r.median()
		fmt.Fprintf(&b, "| %s (%s) | %.3g %s | %s | %s | %s | %s |\n", r.name, r.how, m.value, r.unit, r.bound(), r.verdict(), m.detail, strings.Join(all, ", "))
	}
	return b.String()
}

// commit names what was measured.
func commit() string {
	out, err := exec.Command("git", "describe", "--always", "--dirty").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}
