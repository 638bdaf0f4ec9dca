// Package config reads the one YAML file that configures k3s-autoscaler.
//
// Reading is strict and complete: an unknown key, a bad value, a missing file
// or a contradiction is an error with its line, and all of them are reported at
// once. The struct tags below are the only source of the keys, their defaults,
// their limits and their descriptions; the decoder, the checks and the JSON
// Schema all read them.
//
// Secrets never stand in the file: tokens and credentials are named by keys
// that end in _file, and any other value can come from the environment
// (${env:NAME}) or a file (${file:path}). Relative paths are relative to the
// folder of the configuration file.
package config

import "github.com/k3s-autoscaler/k3s-autoscaler/events"

// Providers that a pool may name.
const (
	ProviderDocker    = "docker"
	ProviderSimulated = "simulated"
	// ProviderExternalGRPC is a provider of the Cluster Autoscaler's protocol.
	ProviderExternalGRPC = "externalgrpc"
)

// What becomes of the pods of Jobs.
const (
	JobsEvict  = "evict"
	JobsFinish = "finish"
)

// InCluster as a kubeconfig means the service account of the pod.
const InCluster = "in-cluster"

// ImageAuto as an image means rancher/k3s in the version of the server.
const ImageAuto = "auto"

// Config is the whole file. Zero values never need a second look: every
// default is already filled in.
//
// Tags: yaml is the key; default is used when the key is absent; required
// makes its absence an error; enum, min and max limit it; path marks a file
// name that is made absolute and "exists" a file that must be readable; doc
// describes the key.
type Config struct {
	Clusters  []Cluster `yaml:"clusters" required:"true" doc:"The k3s clusters to look after."`
	Decision  Decision  `yaml:"policy" doc:"What decisions follow, in every cluster."`
	Alerting  Alerting  `yaml:"alerting" doc:"How alerts of Alertmanager are understood."`
	Collector Collector `yaml:"collector" doc:"How the state of a cluster is watched."`
	Bus       Bus       `yaml:"bus" doc:"Where events are kept and delivered: NATS JetStream, embedded or external."`
	API       API       `yaml:"api" doc:"The HTTP interface: webhook, requests, queries, metrics."`
	Audit     Audit     `yaml:"audit" doc:"Where everything that happened is recorded."`
	Telemetry Telemetry `yaml:"telemetry" doc:"Logs."`
	Reconcile Reconcile `yaml:"reconcile" doc:"How machines, Node objects and records are compared."`

	src *source // positions of everything, for checks that come later
}

// Cluster is one k3s cluster.
type Cluster struct {
	Name            string      `yaml:"name" required:"true" doc:"Name of the cluster, a DNS label; part of every event, never to be changed."`
	Kubeconfig      string      `yaml:"kubeconfig" path:"exists" doc:"Kubeconfig for reading, or 'in-cluster'. Required unless every pool is simulated."`
	ActorKubeconfig string      `yaml:"actor_kubeconfig" path:"exists" doc:"Kubeconfig for acting (cordon, evict, delete nodes, write Kubernetes Events), or 'in-cluster'. Loaded by provisioning, draining and announcing alone, never in a dry run."`
	ServerURL       string      `yaml:"server_url" doc:"Where new agents find the server, e.g. https://k3s:6443."`
	TokenFile       string      `yaml:"token_file" path:"exists" doc:"File with the token that new agents join with."`
	Prometheus      *Prometheus `yaml:"prometheus" doc:"The Prometheus that answers the queries of policy.metric_rules. Asked by the collector alone."`
	Pools           []Pool      `yaml:"pools" required:"true" doc:"The node pools of the cluster."`
}

// Pool is a set of like nodes that grows and shrinks.
type Pool struct {
	Name             string            `yaml:"name" required:"true" doc:"Name of the pool, a DNS label of at most 52 characters; nodes are named <pool>-<10 characters>."`
	RenamedFrom      []string          `yaml:"renamed_from" doc:"Names that the pool had. Its nodes that bear them count and go like all others; they keep their names and labels, and new ones get the pool's. Only for a pool of the same provider on the same hosts. Without it, nodes of a pool that is no longer configured stay as mere capacity: nothing removes, replaces or cleans them up."`
	Provider         string            `yaml:"provider" required:"true" enum:"docker,simulated,externalgrpc" doc:"What creates the nodes."`
	Min              int               `yaml:"min" default:"0" min:"0" doc:"Nodes that are kept whatever the load."`
	Max              int               `yaml:"max" required:"true" min:"0" doc:"Nodes at most."`
	CPU              CPU               `yaml:"cpu" required:"true" doc:"Allocatable CPU of a node, e.g. 2 or 500m."`
	Memory           Bytes             `yaml:"memory" required:"true" doc:"Allocatable memory of a node, e.g. 4Gi."`
	Headroom         *Headroom         `yaml:"headroom" doc:"Room that is kept for pods that are to come: when they come, they start at once, and a new node makes up for what they take. Pods that wait take it first. It adds no node above max, and keeps those that it needs."`
	Schedules        []Schedule        `yaml:"schedules" doc:"Other limits within windows, such as more nodes during office hours. Of several that are open at a time the highest min and the lowest max count, and every headroom; what none of them sets is the pool's own. When a window ends, nodes go as they always do, by all rules of scale_down; a lower max removes none by itself."`
	MaxPods          int               `yaml:"max_pods" default:"110" min:"1" doc:"Pods a node can run at most; the kubelet's own default is 110."`
	Priority         int               `yaml:"priority" default:"0" doc:"Rank among the pools where policy.pool_choice has 'priority': higher is preferred."`
	Price            float64           `yaml:"price" default:"0" min:"0" max:"1000" doc:"What a node costs an hour, in any one currency, where policy.pool_choice has 'price'."`
	Labels           map[string]string `yaml:"labels" doc:"Labels that the nodes register with."`
	Taints           []Taint           `yaml:"taints" doc:"Taints that the nodes register with, as kubectl writes them: key=value:Effect."`
	StartupTaints    []Taint           `yaml:"startup_taints" doc:"Taints that the nodes register with, too, and that something on them takes away when it is ready (a network plugin, a driver): they are no reason against a new node."`
	RegisterDeadline events.Duration   `yaml:"register_deadline" default:"2m" doc:"From the start of a machine to a Ready node; then it is removed and counts as failed."`
	ClaimExpiry      events.Duration   `yaml:"claim_expiry" default:"2m" doc:"A claim that nothing has taken up by then is void."`
	Backoff          Backoff           `yaml:"backoff" doc:"How long to wait after a node failed to come up."`
	Drain            Drain             `yaml:"drain" doc:"How nodes are emptied."`
	ScaleUp          ScaleUp           `yaml:"scale_up" doc:"When nodes are added."`
	ScaleDown        ScaleDown         `yaml:"scale_down" doc:"When nodes are removed."`
	Repair           Repair            `yaml:"repair" doc:"When a node that is not Ready is removed."`
	Docker           *Docker           `yaml:"docker" doc:"Settings of the docker provider."`
	ExternalGRPC     *ExternalGRPC     `yaml:"externalgrpc" doc:"Settings of the externalgrpc provider."`
}

// Schedule sets limits of a pool within windows.
type Schedule struct {
	Name     string          `yaml:"name" required:"true" doc:"Name of the schedule, as explanations show it."`
	Schedule string          `yaml:"schedule" required:"true" doc:"When a window begins, as cron writes it: minute hour day-of-month month day-of-week, or @daily and the like."`
	Duration events.Duration `yaml:"duration" required:"true" doc:"How long a window lasts."`
	Timezone string          `yaml:"timezone" default:"UTC" doc:"That of the schedule, e.g. Europe/Berlin."`
	Min      *int            `yaml:"min" min:"0" doc:"The pool's min while the window is open."`
	Max      *int            `yaml:"max" min:"0" doc:"The pool's max while the window is open."`
	Headroom *Headroom       `yaml:"headroom" doc:"The pool's headroom while the window is open; of several schedules each is kept."`
}

// Headroom is room that a pool keeps. The default size of a pod is what the cluster
// autoscaler's FAQ (CPU) and Kubernetes' own page (memory) reserve in their examples
// of overprovisioning.
type Headroom struct {
	Pods    int     `yaml:"pods" default:"0" min:"0" max:"10000" doc:"So many pods of the size 'pod' fit on the pool's nodes beside all others."`
	Pod     PodSize `yaml:"pod" doc:"What each of them asks for."`
	Percent int     `yaml:"percent" default:"0" min:"0" max:"90" doc:"So much of the allocatable CPU, and of the memory, of the pool's nodes is free, wherever. With 'pods', both are kept."`
}

// PodSize is what a pod asks for.
type PodSize struct {
	CPU    CPU   `yaml:"cpu" default:"200m" doc:"Its CPU request, e.g. 200m."`
	Memory Bytes `yaml:"memory" default:"512Mi" doc:"Its memory request, e.g. 512Mi."`
}

// Backoff is how long a pool rests after a claim failed.
type Backoff struct {
	Initial events.Duration `yaml:"initial" default:"30s" doc:"After the first failure; doubled each time."`
	Max     events.Duration `yaml:"max" default:"10m" doc:"At most."`
	Reset   events.Duration `yaml:"reset" default:"1h" doc:"Without a failure for so long, back to the initial value."`
}

// Drain is how nodes are emptied.
type Drain struct {
	Deadline     events.Duration `yaml:"deadline" default:"2m" doc:"How long a drain may take; then see on_deadline."`
	OnDeadline   string          `yaml:"on_deadline" default:"uncordon" enum:"uncordon,force" doc:"What happens at the deadline: 'uncordon' gives the drain up, and the node stays; 'force' goes on with a removal for as long again: what is left on the node is evicted, whatever its annotations, local volumes and lack of a controller say, and pods that outlived their grace period no longer keep the node, since the end of its machine ends them. Each is recorded with its reason. Never against a disruption budget: if one still refuses at the end, the node is uncordoned and stays."`
	LocalStorage string          `yaml:"local_storage" default:"block" enum:"block,delete" doc:"Pods whose data is lost with the node (emptyDir that is not memory, hostPath, local volumes): 'block' keeps the node, 'delete' evicts them, as kubectl drain does with --delete-emptydir-data. A pod whose volume can be used from this node alone fits nowhere else, which keeps the node all the same."`
	Unmanaged    string          `yaml:"unmanaged" default:"block" enum:"block,delete" doc:"Pods that no controller would create again elsewhere: 'block' keeps the node, 'delete' evicts them for good, as kubectl drain does with --force."`
}

// Repair is when a node that is not Ready is removed. Managed Kubernetes replaces
// nodes after about ten minutes, the cluster autoscaler removes unneeded unready ones
// after twenty, Karpenter repairs after thirty; Kubernetes itself gives the pods of
// such a node up after five. Ten minutes are longer than a host takes to start anew,
// and since the machine is stopped before its Node object goes, no pod runs twice.
type Repair struct {
	Enabled bool            `yaml:"enabled" default:"true" doc:"Nodes that are not Ready for too long are removed, and replaced as far as the minimum, pods and all else ask for it. Their pods are not waited for: the machine is stopped, and Kubernetes takes them away with the Node object. False: they stay until somebody removes them."`
	After   events.Duration `yaml:"after" default:"10m" doc:"How long. Stretches add up unless the node was Ready for a fifth of this time in between. A node stays if too many are not Ready (policy.max_unready_count), while the pool is paused or backs off, and if it keeps the data of a pod (hostPath, local volumes)."`
}

// ScaleUp is when nodes are added.
type ScaleUp struct {
	Cooldown            events.Duration `yaml:"cooldown" default:"3m" doc:"Between two scale-ups by the same pool's alerts; pending pods do not wait."`
	ReplaceUnreadyAfter events.Duration `yaml:"replace_unready_after" doc:"The minimum no longer counts on a node that has not been Ready for so long: another comes, below max, and both stay if it comes back, until scale_down finds one unneeded. Absent: never, it is replaced when it is removed (repair). Nodes that are lost are always replaced."`
}

// ScaleDown is when nodes are removed.
type ScaleDown struct {
	UtilizationThreshold float64         `yaml:"utilization_threshold" default:"0.5" min:"0" max:"1" doc:"A node is unneeded when max(CPU, memory) of requests / allocatable is below."`
	Unneeded             events.Duration `yaml:"unneeded" default:"5m" doc:"How long a node must be unneeded."`
	DelayAfterAdd        events.Duration `yaml:"delay_after_add" default:"10m" doc:"No removal for so long after a node was added."`
	DelayAfterFailure    events.Duration `yaml:"delay_after_failure" default:"3m" doc:"No removal for so long after a removal failed."`
	Cooldown             events.Duration `yaml:"cooldown" default:"10s" doc:"Between two removals."`
	Stabilization        events.Duration `yaml:"stabilization" default:"5m" doc:"The highest need of this window counts."`
	MinLifetime          events.Duration `yaml:"min_lifetime" default:"10m" doc:"No node is removed earlier, counted from Ready."`
	Order                string          `yaml:"order" default:"newest" enum:"newest,least-utilized,cheapest-to-move" doc:"Which node goes first: the one that was Ready last, the one whose pods ask for least, or the one with the fewest pods to move."`
	MaxRemovals          int             `yaml:"max_removals" default:"0" min:"0" doc:"Nodes of the pool leaving at a time; 0 means 10 % of max, at least one."`
	Budgets              []RemovalBudget `yaml:"budgets" doc:"How many nodes of the pool may leave at a time, always or within windows; of several the lowest counts, max_removals among them. A person passes them with an override."`
	Jobs                 string          `yaml:"jobs" default:"evict" enum:"evict,finish" doc:"What becomes of the pods of Jobs on a node that is to go: 'evict' treats them like all others; 'finish' lets them end first, whatever their annotations, budgets and local volumes say: the node takes no new pods, waits until they are done, and is then emptied and removed. It stays if it is needed meanwhile."`
	JobsDeadline         events.Duration `yaml:"jobs_deadline" default:"1h" doc:"How long 'jobs: finish' waits; then those that are left are evicted, unless they are never evicted (annotations, local volumes): then the node stays."`
	Flap                 Flap            `yaml:"flap" doc:"When a pool is found to need its nodes again and again, and stops to remove them by itself."`
}

// RemovalBudget is how many nodes of a pool may leave at a time.
type RemovalBudget struct {
	Nodes    string          `yaml:"nodes" required:"true" doc:"A number, or a share of the pool such as 10%, rounded up; 0 keeps them all."`
	Schedule string          `yaml:"schedule" doc:"When a window begins, as cron writes it: minute hour day-of-month month day-of-week, or @daily and the like. Absent: always."`
	Duration events.Duration `yaml:"duration" doc:"How long a window lasts."`
	Timezone string          `yaml:"timezone" default:"UTC" doc:"That of the schedule, e.g. Europe/Berlin."`
}

// Flap is when a pool stops to remove nodes that it needs again.
type Flap struct {
	Count  int             `yaml:"count" default:"3" min:"0" max:"100" doc:"How often within the time of 'freeze' a node is needed soon after a removal; 0: the pool never stops."`
	Within events.Duration `yaml:"within" default:"10m" doc:"How soon after a removal."`
	Freeze events.Duration `yaml:"freeze" default:"1h" doc:"How long no node is removed by itself then; people and tools still can."`
}

// Docker are the settings of the docker provider.
type Docker struct {
	Host            string            `yaml:"host" doc:"The Docker engine, where there is one: unix:///path, tcp://host:2376 (with tls), or ssh://user@host[:port][/path/of/the/socket] (with ssh). The short form of 'hosts' with one entry. Absent, with 'hosts' absent: unix:///var/run/docker.sock."`
	TLS             *ClientTLS        `yaml:"tls" doc:"Client certificate for a tcp host."`
	Image           string            `yaml:"image" default:"auto" doc:"Image of the agent; 'auto' is image_repository in the server's version, never newer."`
	ImageRepository string            `yaml:"image_repository" default:"rancher/k3s" doc:"Where 'auto' takes the image from."`
	Pull            string            `yaml:"pull" default:"missing" enum:"missing,always,never" doc:"When the image is pulled."`
	Network         string            `yaml:"network" default:"bridge" doc:"Docker network of the containers; agents must reach server_url on it. 'host' allows one agent a host."`
	ExtraArgs       []string          `yaml:"extra_args" doc:"More arguments of 'k3s agent'."`
	Env             map[string]string `yaml:"env" doc:"Environment of the containers; visible to everyone who may inspect them, so no secrets."`
	Mounts          []string          `yaml:"mounts" doc:"Bind mounts as docker writes them: /host/path:/path[:ro]; the path is on the engine's host."`
	StopTimeout     events.Duration   `yaml:"stop_timeout" default:"10s" doc:"How long a container may take to end before it is killed."`
	SSH             *SSH              `yaml:"ssh" doc:"How an ssh host is logged in to."`
	Hosts           []DockerHost      `yaml:"hosts" doc:"The Docker engines of the pool; instead of 'host', 'tls' and 'ssh'. A host that does not answer gets no new nodes; those that it has are unknown meanwhile, not gone."`
	Placement       string            `yaml:"placement" default:"spread" enum:"spread,pack" doc:"Which host gets a new node, of those that have room for it: 'spread' the one with the fewest nodes of the pool, 'pack' the one that is used most. Between equals a hash of claim and host decides."`
	Prepull         bool              `yaml:"prepull" doc:"Pull the image to every host in the background at start, and look every ten minutes whether it is still there and still the right one, so that no node waits for it."`
	RegistriesFile  string            `yaml:"registries_file" path:"exists" doc:"A registries.yaml of k3s (mirrors, credentials of registries). Its content is put into each container at /etc/rancher/k3s/registries.yaml; nothing of it need be on the engine's host. Read for each node."`
	GPUs            string            `yaml:"gpus" doc:"GPUs of each node, as docker run --gpus takes them: all, a number, or device=ID,ID. The hosts need NVIDIA's container toolkit."`
}

// DockerHost is one Docker engine of a pool.
type DockerHost struct {
	Name        string     `yaml:"name" required:"true" doc:"What records, logs and metrics call the host, e.g. attic; a DNS label. One name stands for the same engine in the whole file."`
	Host        string     `yaml:"host" required:"true" doc:"Its engine: unix:///path, tcp://host:2376 (with tls), or ssh://user@host[:port][/path/of/the/socket] (with ssh)."`
	TLS         *ClientTLS `yaml:"tls" doc:"Client certificate for a tcp host."`
	SSH         *SSH       `yaml:"ssh" doc:"How an ssh host is logged in to."`
	MaxNodes    int        `yaml:"max_nodes" default:"0" min:"0" doc:"Nodes of the pool on the host at most; 0: as many as there is room for."`
	MaxParallel int        `yaml:"max_parallel" default:"3" min:"1" max:"100" doc:"How many nodes of all pools are created or started on the host at a time."`
	CPU         *CPU       `yaml:"cpu" doc:"What nodes of all pools and clusters may have of the host's CPU together. Absent: all that its engine reports. More than that is overcommitted, less is left to others."`
	Memory      *Bytes     `yaml:"memory" doc:"The same for memory. A node takes 512Mi for its agent beside what it offers to pods."`
}

// SSH is how a host is logged in to.
type SSH struct {
	KeyFile        string `yaml:"key_file" required:"true" path:"exists" doc:"Private key, without a passphrase."`
	KnownHostsFile string `yaml:"known_hosts_file" required:"true" path:"exists" doc:"Keys of servers as OpenSSH keeps them; a server that is not in it is refused. 'ssh-keyscan HOST' prints what to put in, after comparing the fingerprint."`
}

// ExternalGRPC are the settings of the externalgrpc provider. The default timeout is
// that of package externalgrpc.
type ExternalGRPC struct {
	Address   string          `yaml:"address" required:"true" doc:"Where the provider listens, host:port."`
	NodeGroup string          `yaml:"node_group" required:"true" doc:"Id of the node group as the provider has it. It belongs to this pool alone; nodes that it has already, and that others add, are left alone."`
	TLS       *ClientTLS      `yaml:"tls" doc:"Client certificate, and who is trusted. Without it whoever reaches the provider makes and deletes nodes."`
	Timeout   events.Duration `yaml:"timeout" default:"30s" doc:"How long one call may take."`
}

// ClientTLS is a client certificate and who is trusted.
type ClientTLS struct {
	CAFile   string `yaml:"ca_file" path:"exists" doc:"Certificate authority of the server; the system's when absent."`
	CertFile string `yaml:"cert_file" path:"exists" doc:"Client certificate."`
	KeyFile  string `yaml:"key_file" path:"exists" doc:"Its private key."`
}

// ServerTLS is a server certificate.
type ServerTLS struct {
	CertFile string `yaml:"cert_file" required:"true" path:"exists" doc:"Certificate, with its chain."`
	KeyFile  string `yaml:"key_file" required:"true" path:"exists" doc:"Its private key."`
}

// Decision is what decisions follow in every cluster.
type Decision struct {
	AlertRules         []AlertRule     `yaml:"alert_rules" doc:"What alerts ask for."`
	MetricRules        []MetricRule    `yaml:"metric_rules" doc:"How many nodes metrics ask for. Of several rules of a pool up beats none beats down, and the highest number counts: a rule adds nodes alone, and nodes go only when every rule that may remove asks for fewer. What is not known, too old or no number never removes a node, and keeps what the rule last asked for."`
	ProtectedNodes     []string        `yaml:"protected_nodes" doc:"Names of nodes that are never drained or removed."`
	StartupGrace       events.Duration `yaml:"startup_grace" default:"10m" doc:"Nothing is scaled down for so long after start."`
	StaleAfter         events.Duration `yaml:"stale_after" default:"1m" doc:"A snapshot older than this no longer counts for scale-down."`
	MaxUnreadyFraction float64         `yaml:"max_unready_fraction" default:"0.45" min:"0" max:"1" doc:"With more unready nodes than this share and more than max_unready_count, nothing is scaled, but for what a pool lacks of its minimum, max_unready_count nodes at a time."`
	MaxUnreadyCount    int             `yaml:"max_unready_count" default:"3" min:"0" doc:"See max_unready_fraction."`
	MaxRemovalsPerHour int             `yaml:"max_removals_per_hour" default:"0" min:"0" doc:"Nodes of the cluster that are removed within an hour at most, whoever asks for it without an override; 0: any number."`
	ExpendableBelow    int             `yaml:"expendable_pods_priority_cutoff" default:"-10" min:"-2147483648" max:"1000000000" doc:"Pods of a lower priority ask for no node, keep none, and give way to any other."`
	PoolChoice         []string        `yaml:"pool_choice" enum:"least-waste,priority,price,most-pods,least-nodes,balance" doc:"Which pool gets a node where several could serve the same pods; absent, least-waste, then least-nodes. The first of these that tells two pools apart decides; between equals, a hash of pods and pool. least-waste: the smallest share of the new nodes stays empty. priority: the highest pools[].priority. price: the lowest pools[].price of a served pod. most-pods: serves the most pods. least-nodes: the fewest nodes for a served pod. balance: the pool with the fewest nodes, and new nodes are spread over those that are as good in what comes before it."`
}

// AlertRule is what an alert asks for.
type AlertRule struct {
	Name      string    `yaml:"name" required:"true" doc:"Name of the rule, as explanations show it."`
	Match     []Matcher `yaml:"match" required:"true" doc:"Label matchers of Alertmanager, all of which must match, e.g. alertname=\"QueueBacklog\"."`
	Cluster   string    `yaml:"cluster" doc:"Only for this cluster; absent, for every cluster that has the pool."`
	Pool      string    `yaml:"pool" required:"true" doc:"The pool that is scaled."`
	Direction string    `yaml:"direction" required:"true" enum:"up,down" doc:"Whether nodes are added or may be removed."`
	Amount    int       `yaml:"amount" default:"1" min:"1" doc:"Nodes to add while the alert fires; for down, how many may go at a time."`
}

// Alerting is how alerts are understood.
type Alerting struct {
	Expiry         events.Duration `yaml:"expiry" default:"15m" doc:"A firing alert counts for so long without being repeated; more than Alertmanager's repeat_interval."`
	ClusterLabel   string          `yaml:"cluster_label" default:"cluster" doc:"The label of an alert that names the cluster."`
	DefaultCluster string          `yaml:"default_cluster" doc:"The cluster of alerts without that label; with one cluster, that one."`
}

// Collector is how the state of a cluster is watched.
type Collector struct {
	FullEvery       events.Duration `yaml:"full_every" default:"15m" doc:"How often the full state is published."`
	ChangedEvery    events.Duration `yaml:"changed_every" default:"10s" doc:"A snapshot is never more than this after the previous one."`
	BatchWindow     events.Duration `yaml:"batch_window" default:"50ms" min:"0" doc:"A change is published at most so long after it, together with what changed meanwhile; a pod that waits and comes alone is not kept waiting. 0: each change at once."`
	MetricsInterval events.Duration `yaml:"metrics_interval" default:"30s" doc:"How often CPU and memory usage are asked for."`
}

// Bus is where events are kept and delivered.
type Bus struct {
	URL             string          `yaml:"url" doc:"An external NATS cluster, e.g. nats://nats:4222, several servers with commas; absent, the embedded server is used."`
	CredentialsFile string          `yaml:"credentials_file" path:"exists" doc:"NATS credentials (.creds: a JWT and its seed)."`
	NKeyFile        string          `yaml:"nkey_file" path:"exists" doc:"Seed of a NATS user NKey."`
	TokenFile       string          `yaml:"token_file" path:"exists" doc:"File with the token of the NATS server, e.g. of another process's embedded one."`
	User            string          `yaml:"user" doc:"NATS user, with password_file."`
	PasswordFile    string          `yaml:"password_file" path:"exists" doc:"File with the password of user."`
	TLS             *ClientTLS      `yaml:"tls" doc:"Certificates for the external cluster."`
	Provisioned     bool            `yaml:"provisioned" doc:"Streams, consumers and buckets are made by 'k3s-autoscaler bus provision', and looked up only: for credentials that may no more than their role needs."`
	Replicas        int             `yaml:"replicas" default:"1" min:"1" max:"5" doc:"Copies of the streams; 3 in a cluster."`
	MaxAge          events.Duration `yaml:"max_age" default:"168h" doc:"How long events are kept."`
	MaxBytes        Bytes           `yaml:"max_bytes" default:"1Gi" doc:"How much space events may take, and as much again the data of those that have no room in a message; the oldest go first."`
	InFlight        int             `yaml:"in_flight" default:"16" min:"1" doc:"Events that one process handles at a time."`
	Embedded        Embedded        `yaml:"embedded" doc:"The NATS server inside the process."`
}

// Embedded is the NATS server inside the process.
type Embedded struct {
	Dir       string     `yaml:"dir" default:"data/bus" path:"any" doc:"Folder of the streams."`
	Sync      Sync       `yaml:"sync" default:"always" doc:"When events reach the disk: 'always' loses nothing that was acknowledged; a duration, e.g. 2m, is faster and can lose that much when the power fails (not when the process dies)."`
	Listen    string     `yaml:"listen" doc:"Address on which others may connect, e.g. 127.0.0.1:4222; absent, none. One that other machines reach needs token_file."`
	TokenFile string     `yaml:"token_file" path:"exists" doc:"File with the token that others connect with (their bus.token_file), e.g. made by 'openssl rand -hex 32'."`
	TLS       *ServerTLS `yaml:"tls" doc:"Certificate of the listener; others name its authority in bus.tls.ca_file."`
}

// API is the HTTP interface.
type API struct {
	Listen     string     `yaml:"listen" default:"127.0.0.1:8080" doc:"Address of the HTTP server."`
	TokenFiles []string   `yaml:"token_files" path:"exists" doc:"Files with the bearer tokens that may call, made by 'k3s-autoscaler key new'. Read again when they change."`
	TLS        *ServerTLS `yaml:"tls" doc:"Serve HTTPS."`
	Limits     Limits     `yaml:"limits" doc:"What a call may cost."`
}

// Limits are what a call may cost.
type Limits struct {
	BodyBytes     Bytes           `yaml:"body_bytes" default:"4Mi" min:"1024" doc:"Size of a request body."`
	HeaderBytes   Bytes           `yaml:"header_bytes" default:"32Ki" min:"1024" doc:"Size of the request headers."`
	HeaderTimeout events.Duration `yaml:"header_timeout" default:"5s" doc:"To receive the headers."`
	ReadTimeout   events.Duration `yaml:"read_timeout" default:"15s" doc:"To receive the whole request."`
	WriteTimeout  events.Duration `yaml:"write_timeout" default:"30s" doc:"To answer; event streams are exempt."`
	IdleTimeout   events.Duration `yaml:"idle_timeout" default:"2m" doc:"A connection without requests is closed."`
	PublishWait   events.Duration `yaml:"publish_wait" default:"5s" doc:"For the bus to acknowledge; then the answer is 503."`
}

// Audit is where everything that happened is recorded.
type Audit struct {
	SQLite SQLite `yaml:"sqlite" doc:"A SQLite file."`
}

// SQLite is a SQLite file.
type SQLite struct {
	Path string `yaml:"path" default:"data/audit.db" path:"any" doc:"The database file."`
}

// Telemetry is logs.
type Telemetry struct {
	LogLevel  string `yaml:"log_level" default:"info" enum:"debug,info,warn,error" doc:"What is logged."`
	LogFormat string `yaml:"log_format" default:"json" enum:"json,text" doc:"How it is logged."`
}

// Reconcile is how machines, Node objects and records are compared.
type Reconcile struct {
	Every events.Duration `yaml:"every" default:"1m" doc:"How often; once at the start, too."`
	Grace events.Duration `yaml:"grace" default:"2m" doc:"How long a machine or Node object must have been there without a record before it is removed or adopted; what is missing is acted on at once."`
}
