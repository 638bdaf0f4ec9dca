// Command agent stands in for `k3s agent` where the real image cannot be
// pulled: it takes the flags and the environment of k3s, joins with the k3s
// token, and then runs kubemark's hollow kubelet, which is the real kubelet
// (registration, lease, status, pod workers) on a container runtime that only
// pretends.
//
// What it imitates of k3s, because the product depends on it:
//
//   - The token's CA hash is verified against what the server presents.
//   - The node password: the first agent of a name leaves a hash in the secret
//     <node>.node-password.k3s, an agent with another password is rejected and
//     keeps retrying. (k3s does this on the server; the stand-in does it with
//     the rights of the join token.)
//   - A wrong token or a refused label leaves the process up, logging, without
//     a Node object.
//   - The kubelet sees the whole host, whatever limits the container has;
//     system-reserved, kube-reserved and eviction-hard lower allocatable.
//   - SIGTERM ends it with exit code 0 and leaves the Node object.
//
// What it does not have: the k3s supervisor API, networking, images.
package main
