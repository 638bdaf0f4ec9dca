package bus

import (
	"fmt"
	"hash/fnv"
	"strconv"
	"strings"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// Names of what the bus keeps in JetStream.
const (
	// StreamName is the stream of record.
	StreamName = "K3SAS"
	// TimersStream holds armed timers and what fired until the relay took it.
	TimersStream = "K3SAS_TIMERS"
	// DeadLetterStream holds the events that handlers set aside.
	DeadLetterStream = "K3SAS_DEADLETTERS"
	// PayloadStream holds the data of events that has no room in a message. It is
	// the NATS object store of the bucket "k3sas-payloads".
	PayloadStream = "OBJ_" + payloadBucket

	payloadBucket = "k3sas-payloads"
	payloadChunks = "$O." + payloadBucket + ".C." // and an object's unique id
	payloadInfos  = "$O." + payloadBucket + ".M." // and an object's name

	armedRoot  = "k3sas-armed"
	firedRoot  = "k3sas-fired"
	deadRoot   = "k3sas-dead"
	pullGroup  = "pull"
	relayName  = "timers"
	nodeToken  = "node"
	partPrefix = "p"
)

// bucketName is the KV bucket of a handler: its records, its parked keys and its
// counted attempts; nobody else writes it.
func bucketName(handler string) string { return "k3sas-" + handler }

// bucketStream is the stream behind it.
func bucketStream(handler string) string { return "KV_" + bucketName(handler) }

// bucketWrite is the subject of one key of a bucket.
func bucketWrite(handler, key string) string { return "$KV." + bucketName(handler) + "." + key }

// consumerName is the durable of one handler and partition.
func consumerName(handler string, partition int) string {
	return handler + "-" + strconv.Itoa(partition)
}

// PartitionOf returns the partition that the stream of record puts in front of
// the events of a key: NATS's own hash of the cluster's and the key's token.
func PartitionOf(k Key) (int, error) {
	token, err := k.token()
	if err != nil {
		return 0, err
	}
	return partitionOf(k.Cluster, token), nil
}

func partitionOf(cluster, token string) int {
	h := fnv.New32a()
	_, _ = h.Write([]byte(cluster))
	_, _ = h.Write([]byte(token))
	return int(h.Sum32() % Partitions)
}

// mix32 spreads the priorities of processes over partitions. Plain FNV is too
// regular for names that differ in one digit: it sent 1,299 of 1,600 messages to
// one of three processes. The finalizer is that of MurmurHash3.
func mix32(parts ...string) uint32 {
	h := fnv.New32a()
	for _, p := range parts {
		_, _ = h.Write([]byte(p))
		_, _ = h.Write([]byte{0})
	}
	x := h.Sum32()
	x ^= x >> 16
	x *= 0x85ebca6b
	x ^= x >> 13
	x *= 0xc2b2ae35
	x ^= x >> 16
	return x
}

// token is the key's name as one subject token, after a check of both names.
func (k Key) token() (string, error) {
	if err := events.ValidateCluster(k.Cluster); err != nil {
		return "", err
	}
	return events.EncodeKey(k.Name)
}

// KeyOf returns the key of an event.
func KeyOf(e events.Event) (Key, error) {
	cluster, name, err := events.PartitionKey(e)
	if err != nil {
		return Key{}, err
	}
	k := Key{Cluster: cluster, Name: name}
	if _, err := k.token(); err != nil {
		return Key{}, err
	}
	return k, nil
}

// storedSubject is the subject after the stream's transform.
func storedSubject(partition int, subject string) string {
	return partPrefix + "." + strconv.Itoa(partition) + "." + subject
}

// filterSubject matches the stored subjects of one partition ("*" for all),
// cluster, key token and ending.
func filterSubject(partition, cluster, token, suffix string) string {
	return strings.Join([]string{partPrefix, partition, events.SubjectRoot, cluster, nodeToken, token, suffix}, ".")
}

// parseStored takes a stored subject apart.
func parseStored(subject string) (partition int, k Key, err error) {
	t := strings.SplitN(subject, ".", 7)
	if len(t) != 7 || t[0] != partPrefix || t[2] != events.SubjectRoot || t[4] != nodeToken {
		return 0, Key{}, fmt.Errorf("subject %q is not of the stream of record", subject)
	}
	if partition, err = strconv.Atoi(t[1]); err != nil || partition < 0 || partition >= Partitions {
		return 0, Key{}, fmt.Errorf("subject %q: partition is %q, expected 0 to %d", subject, t[1], Partitions-1)
	}
	if err := events.ValidateCluster(t[3]); err != nil {
		return partition, Key{}, fmt.Errorf("subject %q: %w", subject, err)
	}
	name, err := events.DecodeKey(t[5])
	if err != nil {
		return partition, Key{}, fmt.Errorf("subject %q: %w", subject, err)
	}
	return partition, Key{Cluster: t[3], Name: name}, nil
}
