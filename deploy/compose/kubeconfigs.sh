#!/bin/sh
# Writes a kubeconfig for each of the autoscaler's two identities.
set -eu
export KUBECONFIG=/tmp/admin.yaml
sed 's#https://127.0.0.1:6443#https://k3s:6443#' /admin/admin.yaml >"$KUBECONFIG"
for who in reader actor; do
	token=""
	while [ -z "$token" ]; do
		token=$(kubectl -n k3s-autoscaler get secret "k3s-autoscaler-$who" -o 'jsonpath={.data.token}' 2>/dev/null | base64 -d) || true
		[ -n "$token" ] || { echo "waiting for the token of $who"; sleep 1; }
	done
	ca=$(kubectl -n k3s-autoscaler get secret "k3s-autoscaler-$who" -o 'jsonpath={.data.ca\.crt}')
	cat >"/out/$who.yaml" <<K
apiVersion: v1
kind: Config
current-context: k3s
clusters: [{name: k3s, cluster: {server: "https://k3s:6443", certificate-authority-data: $ca}}]
contexts: [{name: k3s, context: {cluster: k3s, user: $who}}]
users: [{name: $who, user: {token: $token}}]
K
	chown 65532:65532 "/out/$who.yaml"
	chmod 0400 "/out/$who.yaml"
	echo "wrote $who.yaml"
done
