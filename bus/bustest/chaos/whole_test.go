//go:build unix

package chaos

import (
	"testing"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"
)

// What complete lets pass ends the trouble of a server in a history.
func TestAReplicatedThingIsWholeWithALeaderAndEveryFollower(t *testing.T) {
	t.Parallel()
	peers := func(second jetstream.PeerInfo) []*jetstream.PeerInfo {
		second.Name = "s2"
		return []*jetstream.PeerInfo{{Name: "s1", Current: true}, &second}
	}
	r := &runner{s: Schedule{Topology: Cluster}}
	require.NoError(t, r.complete(&jetstream.ClusterInfo{Leader: "s0", Replicas: peers(jetstream.PeerInfo{Current: true})}))
	const behind = "its replica on s2 is behind"
	require.EqualError(t, r.complete(&jetstream.ClusterInfo{Leader: "s0", Replicas: peers(jetstream.PeerInfo{})}), behind)
	require.EqualError(t, r.complete(&jetstream.ClusterInfo{Leader: "s0", Replicas: peers(jetstream.PeerInfo{Current: true, Offline: true})}), behind)
	require.EqualError(t, r.complete(&jetstream.ClusterInfo{Replicas: peers(jetstream.PeerInfo{Current: true})}), "has no leader")
	require.EqualError(t, r.complete(nil), "has no leader")
	for _, alone := range []Topology{Embedded, Single} {
		require.NoError(t, (&runner{s: Schedule{Topology: alone}}).complete(nil), "a server alone replicates nothing")
	}
}
