//go:build fit

package fit

import (
	"encoding/json"
	"fmt"
	"os"
	"testing"

	"sigs.k8s.io/yaml"
)

func TestDebug(t *testing.T) {
	seed := number(t, "FIT_SEED", 0)
	if seed == 0 {
		t.SkipNow()
	}
	c := Generate(uint64(seed))
	for _, k := range Constraints {
		if a, _ := Answer(k.Stripped(c)); true {
			b, _ := Answer(c)
			if a != b {
				fmt.Println("decides:", k.Name)
			}
		}
	}
	want := os.Getenv("FIT_POD")
	for _, p := range c.Pods {
		j, _ := json.Marshal(p.Spec)
		if want == "" || p.Name == want {
			y, _ := yaml.JSONToYAML(j)
			fmt.Println("POD", Ref(p), p.Labels, p.Status.NominatedNodeName, p.DeletionTimestamp, "\n"+string(y))
		} else {
			fmt.Println("POD", Ref(p), p.Labels, string(j))
		}
	}
	for _, n := range c.Nodes {
		j, _ := json.Marshal(n.Status.Allocatable)
		fmt.Println("NODE", n.Name, n.Labels, n.Spec.Taints, string(j))
	}
	for _, v := range c.Volumes {
		j, _ := json.Marshal(v.Spec.NodeAffinity)
		fmt.Println("PV", v.Name, v.Labels, string(j))
	}
	for _, p := range c.Pools {
		fmt.Printf("POOL %+v\n", p)
	}
	res, _ := Decide(c, 0)
	for _, p := range res.Placements {
		fmt.Println("PLACED", p)
	}
	for _, d := range res.Decisions {
		fmt.Println("DECISION", d.Pool, d.Verdict, d.Delta, d.Nodes)
		for _, r := range d.Rejected {
			fmt.Println("   rejected", r.Subject, r.Reason)
		}
	}
}
