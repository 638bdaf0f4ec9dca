#!/bin/sh
# Makes the secrets of docker-compose.yml where they are missing. They are
# readable for everyone in their folder's group only through that folder:
# Compose mounts the files as they are, for users with other numbers.
set -eu
cd "$(dirname "$0")"
mkdir -p secrets && chmod 0711 secrets
make_secret() {
	if [ -s "secrets/$1" ]; then echo "secrets/$1 exists"; return; fi
	umask 022
	printf '%s%s' "$2" "$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')" >"secrets/$1"
	echo "secrets/$1 made"
}
make_secret k3s_token ""
make_secret autoscaler_token "k3sas_compose_"
