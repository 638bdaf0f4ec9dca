// Cover reads a coverage profile, prints the coverage of the packages that
// carry the product's promises, and fails when one is below its floor.
package main

import (
	"bufio"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

const module = "github.com/k3s-autoscaler/k3s-autoscaler/"

// machinery runs in processes that tests start and kill, whose coverage is lost
// with them. It is test code, and no part of the product.
const machinery = "bus/bustest"

// floors are percentages of statements by folder.
var floors = []struct {
	folder string
	floor  float64
}{
	{"handlers", 80}, {"bus", 80}, {"internal/scaling", 80},
}

// removing lists the functions that lead to the removal of a node, by file and
// by a pattern of their names: every statement of theirs is covered.
var removing = []struct{ file, functions string }{
	{"internal/scaling/down.go", `scaleDown|downRequest|take|downAlerts|unneeded|shrink|shrinkGuard|needed`},
	{"internal/scaling/removable.go", `candidates|blockers|podBlockers|rehome|home`},
	{"internal/scaling/requests.go", `nodeRequest|belowMin|remove`},
	{"internal/scaling/guards.go", `downGuard|notForRemoval|tooOld|tooYoung`},
	{"internal/scaling/repair.go", `[a-zA-Z]+`},
	{"handlers/draining/evict.go", `[a-zA-Z]+`},
	{"handlers/draining/keep.go", `[a-zA-Z]+`},
	{"handlers/draining/force.go", `[a-zA-Z]+`},
	{"internal/scaling/evictable/evictable.go", `[a-zA-Z]+`},
	{"handlers/draining/unready.go", `[a-zA-Z]+`},
	{"handlers/draining/work.go", `cordon|settle|gone|abort|notOurs|retry|beginEvicting`},
	{"handlers/draining/handle.go", `requested`},
	{"handlers/provisioning/remove.go", `[a-zA-Z]+`},
	{"handlers/provisioning/verify.go", `[a-zA-Z]+`},
	{"handlers/provisioning/handle.go", `drained`},
	{"internal/kube/actor.go", `DeleteNode|DeleteNodePassword`},
}

type block struct{ stmts, count int }

func main() {
	profile := flag.String("profile", "coverage.out", "coverage profile of go test")
	flag.Parse()
	folders, err := read(*profile)
	if err != nil {
		fmt.Fprintln(os.Stderr, "cover:", err)
		os.Exit(1)
	}
	failed := false
	fmt.Println("coverage of statements by package:")
	names := make([]string, 0, len(folders))
	for n := range folders {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		fmt.Printf("  %-40s %5.1f %%\n", n, percent(folders[n]))
	}
	for _, f := range floors {
		var all []block
		for n, bs := range folders {
			if strings.HasPrefix(n, machinery) {
				continue
			}
			if n == f.folder || strings.HasPrefix(n, f.folder+"/") {
				all = append(all, bs...)
			}
		}
		p := percent(all)
		verdict := "ok"
		if p < f.floor {
			verdict, failed = "BELOW", true
		}
		fmt.Printf("  %-40s %5.1f %%  floor %.0f %%  %s\n", f.folder+"/...", p, f.floor, verdict)
	}
	if err := checkRemoving(*profile); err != nil {
		fmt.Println(err)
		failed = true
	}
	if failed {
		os.Exit(1)
	}
}

// read merges the blocks of a profile by package; a block counts as covered
// when any test binary covered it.
func read(profile string) (map[string][]block, error) {
	f, err := os.Open(profile)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	merged := map[string]block{}
	s := bufio.NewScanner(f)
	for s.Scan() {
		fields := strings.Fields(s.Text())
		if len(fields) != 3 || strings.HasPrefix(s.Text(), "mode:") {
			continue
		}
		stmts, err1 := strconv.Atoi(fields[1])
		count, err2 := strconv.Atoi(fields[2])
		if err1 != nil || err2 != nil {
			return nil, fmt.Errorf("%s: line %q is not of a coverage profile", profile, s.Text())
		}
		b := merged[fields[0]]
		merged[fields[0]] = block{stmts, max(b.count, count)}
	}
	if len(merged) == 0 {
		return nil, fmt.Errorf("%s: holds no coverage", profile)
	}
	folders := map[string][]block{}
	for pos, b := range merged {
		file, _, _ := strings.Cut(strings.TrimPrefix(pos, module), ":")
		folders[path.Dir(file)] = append(folders[path.Dir(file)], b)
	}
	return folders, s.Err()
}

func percent(bs []block) float64 {
	all, hit := 0, 0
	for _, b := range bs {
		all += b.stmts
		if b.count > 0 {
			hit += b.stmts
		}
	}
	if all == 0 {
		return 0
	}
	return 100 * float64(hit) / float64(all)
}

// checkRemoving asks the cover tool for the coverage by function.
func checkRemoving(profile string) error {
	out, err := exec.Command("go", "tool", "cover", "-func", profile).Output()
	if err != nil {
		return fmt.Errorf("go tool cover: %w", err)
	}
	fmt.Println("paths that remove nodes (floor 100 %):")
	var short []string
	for _, r := range removing {
		re := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(module+r.file) + `:\d+:\s+(` + r.functions + `)\s+([\d.]+)%$`)
		found := re.FindAllStringSubmatch(string(out), -1)
		if len(found) == 0 {
			return fmt.Errorf("%s: no function matches %s: the list of removing paths is out of date", r.file, r.functions)
		}
		for _, m := range found {
			fmt.Printf("  %-40s %-30s %6s %%\n", r.file, m[1], m[2])
			if m[2] != "100.0" {
				short = append(short, r.file+":"+m[1])
			}
		}
	}
	if len(short) > 0 {
		return fmt.Errorf("not fully covered: %s", strings.Join(short, ", "))
	}
	return nil
}
