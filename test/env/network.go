package env

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"time"
)

// subnetCandidates are /22 networks (1,021 containers each) of the private
// range that Docker itself and home networks use least.
func subnetCandidates() []netip.Prefix {
	var all []netip.Prefix
	for second := byte(31); second >= 28; second-- {
		for third := 252; third >= 0; third -= 4 {
			all = append(all, netip.PrefixFrom(netip.AddrFrom4([4]byte{172, second, byte(third), 0}), 22))
		}
	}
	return all
}

// freeSubnets returns the candidates that overlap with none in use.
func freeSubnets(inUse []netip.Prefix) []netip.Prefix {
	var free []netip.Prefix
candidates:
	for _, candidate := range subnetCandidates() {
		for _, used := range inUse {
			if candidate.Overlaps(used) {
				continue candidates
			}
		}
		free = append(free, candidate)
	}
	return free
}

// subnetsOfThisHost are those of its interfaces.
func subnetsOfThisHost() ([]netip.Prefix, error) {
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list the addresses of this machine: %w", err)
	}
	var all []netip.Prefix
	for _, address := range addresses {
		if prefix, err := netip.ParsePrefix(address.String()); err == nil {
			all = append(all, prefix.Masked())
		}
	}
	return all, nil
}

const (
	nodeDoor    = "nodes"
	controlDoor = "control"
)

// doors are Toxiproxy's TCP proxies in front of the API server.
type doors struct {
	api string // URL of Toxiproxy's own API
}

type door struct {
	Name     string `json:"name"`
	Listen   string `json:"listen"`
	Upstream string `json:"upstream"`
	Enabled  bool   `json:"enabled"`
}

func (d doors) open(ctx context.Context, all ...door) error {
	return d.post(ctx, "/populate", all)
}

// set opens or closes a door. Closing it also ends the connections through it.
func (d doors) set(ctx context.Context, name string, open bool) error {
	return d.post(ctx, "/proxies/"+name, map[string]bool{"enabled": open})
}

func (d doors) post(ctx context.Context, path string, body any) error {
	content, err := json.Marshal(body)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, d.api+path, bytes.NewReader(content))
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	answer, _ := io.ReadAll(io.LimitReader(response.Body, 4096))
	if response.StatusCode >= http.StatusBadRequest {
		return fmt.Errorf("toxiproxy %s: %s: %s", path, response.Status, bytes.TrimSpace(answer))
	}
	return nil
}

// ErrNoDoors is returned by the cutting methods on a real k3s, whose agents
// connect to the server's own address.
var ErrNoDoors = errors.New("the API server of a real k3s is not behind a proxy that could be cut")

// CutNodes closes the door through which the node containers reach the API
// server, as a failed network would.
func (e *Env) CutNodes(ctx context.Context) error { return e.setDoor(ctx, nodeDoor, false) }

// HealNodes undoes CutNodes.
func (e *Env) HealNodes(ctx context.Context) error { return e.setDoor(ctx, nodeDoor, true) }

// CutControl closes the door of ReaderKubeconfig and ActorKubeconfig, through
// which the product reaches the API server.
func (e *Env) CutControl(ctx context.Context) error { return e.setDoor(ctx, controlDoor, false) }

// HealControl undoes CutControl.
func (e *Env) HealControl(ctx context.Context) error { return e.setDoor(ctx, controlDoor, true) }

func (e *Env) setDoor(ctx context.Context, name string, open bool) error {
	if e.ToxiproxyURL == "" {
		return ErrNoDoors
	}
	if err := (doors{api: e.ToxiproxyURL}).set(ctx, name, open); err != nil {
		return fmt.Errorf("set the %s door: %w", name, err)
	}
	return nil
}
