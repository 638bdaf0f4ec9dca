#!/bin/sh
# kubeconfig.sh reader|actor [server URL] prints a kubeconfig for one of the
# autoscaler's two identities, by the current kubectl context.
set -eu
who=${1:?"usage: kubeconfig.sh reader|actor [server URL]"}
server=${2:-$(kubectl config view --minify -o 'jsonpath={.clusters[0].cluster.server}')}
secret() { kubectl -n k3s-autoscaler get secret "k3s-autoscaler-$who" -o "jsonpath={.data.$1}"; }
token=$(secret token | base64 -d)
[ -n "$token" ] || { echo "the secret k3s-autoscaler-$who has no token yet: apply rbac.yaml and tokens.yaml, then try again" >&2; exit 1; }
cat <<K
apiVersion: v1
kind: Config
current-context: k3s
clusters: [{name: k3s, cluster: {server: "$server", certificate-authority-data: $(secret 'ca\.crt')}}]
contexts: [{name: k3s, context: {cluster: k3s, user: $who}}]
users: [{name: $who, user: {token: $token}}]
K
