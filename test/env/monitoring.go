package env

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/k3s-autoscaler/k3s-autoscaler/test/freeport"
)

// MonitoringOptions say what Prometheus watches and whom Alertmanager tells.
type MonitoringOptions struct {
	// RuleFiles are Prometheus rule files.
	RuleFiles []string
	// ScrapeTargets are host:port addresses by scrape job.
	ScrapeTargets map[string][]string

	// WebhookURL receives the alerts, with the bearer token in TokenFile.
	WebhookURL string
	TokenFile  string

	// GroupBy are the labels that make a group. Default alertname, pool.
	GroupBy []string
	// GroupWait, GroupInterval and RepeatInterval default to 1 s, 1 s and 1 min.
	GroupWait, GroupInterval, RepeatInterval time.Duration
	// MaxAlerts bounds the alerts in one body; 0 is no bound.
	MaxAlerts int

	// AlertmanagerConfig is a whole configuration file to be used instead of
	// the one that the fields above make.
	AlertmanagerConfig string
}

// Monitoring is a running Prometheus and Alertmanager.
type Monitoring struct {
	PrometheusURL   string
	AlertmanagerURL string

	processes processes
	dir       string
	names     []string
}

// StartMonitoring runs the distribution's Prometheus and Alertmanager on
// loopback, with scrapes and evaluations every second. It installs the Debian
// packages where they are missing and this is root; otherwise the error names
// the command. Several can run side by side.
func (e *Env) StartMonitoring(ctx context.Context, opts MonitoringOptions) (*Monitoring, error) {
	if err := ensurePackages(ctx, e.opts.Log, map[string]string{"prometheus": "prometheus"}); err != nil {
		return nil, err
	}
	alertmanager, err := findAlertmanager(ctx, e.opts)
	if err != nil {
		return nil, err
	}
	ports, err := freeport.Take(2)
	if err != nil {
		return nil, err
	}
	id := strconv.Itoa(ports[0]) // no two that run share a port
	m := &Monitoring{
		PrometheusURL:   "http://" + hostPort(loopback, ports[0]),
		AlertmanagerURL: "http://" + hostPort(loopback, ports[1]),
		processes:       e.processes(),
		dir:             filepath.Join(e.StateDir, "monitoring-"+id),
		names:           []string{"prometheus-" + id, "alertmanager-" + id},
	}
	if err := m.start(ctx, opts, alertmanager, ports); err != nil {
		return nil, errors.Join(err, m.Stop())
	}
	return m, nil
}

// Stop ends both. It is idempotent; Env.Stop does it too.
func (m *Monitoring) Stop() error {
	var errs []error
	for _, name := range m.names {
		errs = append(errs, m.processes.stop(name, 0))
	}
	return errors.Join(append(errs, os.RemoveAll(m.dir))...)
}

func (m *Monitoring) start(ctx context.Context, opts MonitoringOptions, alertmanager string, ports []int) error {
	prometheusConfig, err := opts.prometheusConfig(hostPort(loopback, ports[1]))
	if err != nil {
		return err
	}
	files := map[string][]byte{"prometheus.yml": prometheusConfig}
	alertmanagerFile := opts.AlertmanagerConfig
	if alertmanagerFile == "" {
		alertmanagerFile = filepath.Join(m.dir, "alertmanager.yml")
		if files["alertmanager.yml"], err = opts.alertmanagerConfig(); err != nil {
			return err
		}
	}
	if err := writeAll(m.dir, files); err != nil {
		return err
	}
	if err := m.processes.start(m.names[1], alertmanager,
		"--config.file="+alertmanagerFile, "--storage.path="+filepath.Join(m.dir, "alertmanager"),
		"--web.listen-address="+hostPort(loopback, ports[1]), "--cluster.listen-address="); err != nil {
		return err
	}
	if err := m.processes.start(m.names[0], "prometheus",
		"--config.file="+filepath.Join(m.dir, "prometheus.yml"), "--storage.tsdb.path="+filepath.Join(m.dir, "prometheus"),
		"--web.listen-address="+hostPort(loopback, ports[0]), "--web.enable-lifecycle",
		// An alert is sent again after a minute by default, which is the
		// resolution of what a test could see.
		"--rules.alert.resend-delay=1s"); err != nil {
		return err
	}
	for i, url := range []string{m.PrometheusURL, m.AlertmanagerURL} {
		if err := m.processes.waitFor(ctx, m.names[i], 30*time.Second, func(ctx context.Context) error {
			return getOK(ctx, http.DefaultClient, url+"/-/ready")
		}); err != nil {
			return err
		}
	}
	return nil
}

// findAlertmanager knows Debian's name and the project's own.
func findAlertmanager(ctx context.Context, opts Options) (string, error) {
	const debian, upstream = "prometheus-alertmanager", "alertmanager"
	if path, err := exec.LookPath(upstream); err == nil {
		return path, nil
	}
	return debian, ensurePackages(ctx, opts.Log, map[string]string{debian: "prometheus-alertmanager"})
}

func (o MonitoringOptions) prometheusConfig(alertmanager string) ([]byte, error) {
	var rules []string
	for _, file := range o.RuleFiles {
		absolute, err := filepath.Abs(file)
		if err != nil {
			return nil, err
		}
		rules = append(rules, absolute)
	}
	jobs := []any{}
	for job, targets := range o.ScrapeTargets {
		jobs = append(jobs, map[string]any{"job_name": job, "static_configs": []any{map[string]any{"targets": targets}}})
	}
	return yaml.Marshal(map[string]any{
		"global": map[string]any{"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
		"alerting": map[string]any{"alertmanagers": []any{map[string]any{
			"static_configs": []any{map[string]any{"targets": []string{alertmanager}}},
		}}},
		"rule_files":     rules,
		"scrape_configs": jobs,
	})
}

func (o MonitoringOptions) alertmanagerConfig() ([]byte, error) {
	if o.WebhookURL == "" {
		return nil, errors.New("monitoring needs a WebhookURL or an AlertmanagerConfig")
	}
	webhook := map[string]any{"url": o.WebhookURL, "send_resolved": true, "max_alerts": o.MaxAlerts}
	if o.TokenFile != "" {
		absolute, err := filepath.Abs(o.TokenFile)
		if err != nil {
			return nil, err
		}
		webhook["http_config"] = map[string]any{"authorization": map[string]any{"type": "Bearer", "credentials_file": absolute}}
	}
	groupBy := o.GroupBy
	if groupBy == nil {
		groupBy = []string{"alertname", "pool"}
	}
	return yaml.Marshal(map[string]any{
		"route": map[string]any{
			"receiver":        "webhook",
			"group_by":        groupBy,
			"group_wait":      orDefault(o.GroupWait, time.Second),
			"group_interval":  orDefault(o.GroupInterval, time.Second),
			"repeat_interval": orDefault(o.RepeatInterval, time.Minute),
		},
		"receivers": []any{map[string]any{"name": "webhook", "webhook_configs": []any{webhook}}},
	})
}

// orDefault writes a duration as Prometheus reads it, in whole milliseconds.
func orDefault(value, fallback time.Duration) string {
	if value == 0 {
		value = fallback
	}
	return fmt.Sprintf("%dms", value.Milliseconds())
}
