package env

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"k8s.io/client-go/tools/clientcmd"
)

// Door is a way to the API server of one test's own, which can be closed and
// slowed down without disturbing the others.
type Door struct {
	name string
	url  string // of the API server, through the door
	at   doors
}

// OpenDoor opens a further door before the API server. The name is one that no
// other door has. ErrNoDoors on a real k3s.
func (e *Env) OpenDoor(ctx context.Context, name string) (*Door, error) {
	if e.ToxiproxyURL == "" {
		return nil, ErrNoDoors
	}
	d := &Door{name: name, at: doors{api: e.ToxiproxyURL}}
	_ = d.Remove(ctx) // what a test that was cut off left
	upstream := strings.TrimPrefix(e.APIServerURL, "https://")
	var made door
	if err := d.call(ctx, http.MethodPost, "/proxies", door{Name: name, Listen: loopback + ":0", Upstream: upstream, Enabled: true}, &made); err != nil {
		return nil, fmt.Errorf("open the door %s: %w", name, err)
	}
	d.url = "https://" + made.Listen
	return d, nil
}

// Kubeconfig writes a copy of a kubeconfig that leads through the door.
func (d *Door) Kubeconfig(from, to string) error {
	config, err := clientcmd.LoadFromFile(from)
	if err != nil {
		return err
	}
	for _, c := range config.Clusters {
		c.Server = d.url
	}
	return clientcmd.WriteToFile(*config, to)
}

// Cut closes the door and ends the connections through it.
func (d *Door) Cut(ctx context.Context) error { return d.at.set(ctx, d.name, false) }

// Heal undoes Cut.
func (d *Door) Heal(ctx context.Context) error { return d.at.set(ctx, d.name, true) }

// Slow delays everything that the API server sends; 0 ends that.
func (d *Door) Slow(ctx context.Context, by time.Duration) error {
	const toxic = "slow"
	_ = d.call(ctx, http.MethodDelete, "/proxies/"+d.name+"/toxics/"+toxic, nil, nil) // there may be none
	if by == 0 {
		return nil
	}
	return d.call(ctx, http.MethodPost, "/proxies/"+d.name+"/toxics", map[string]any{
		"name": toxic, "type": "latency", "stream": "downstream", "attributes": map[string]any{"latency": by.Milliseconds()},
	}, nil)
}

// Remove takes the door away.
func (d *Door) Remove(ctx context.Context) error {
	return d.call(ctx, http.MethodDelete, "/proxies/"+d.name, nil, nil)
}

func (d *Door) call(ctx context.Context, method, path string, body, answer any) error {
	var content bytes.Buffer
	if body != nil {
		if err := json.NewEncoder(&content).Encode(body); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, method, d.at.api+path, &content)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, 1<<16))
	switch {
	case err != nil:
		return err
	case response.StatusCode >= http.StatusBadRequest:
		return fmt.Errorf("toxiproxy %s: %s: %s", path, response.Status, bytes.TrimSpace(text))
	case answer == nil:
		return nil
	}
	return json.Unmarshal(text, answer)
}
