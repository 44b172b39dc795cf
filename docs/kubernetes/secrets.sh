#!/bin/sh
# Creates the content of the Secrets in secrets/, next to this file: random passwords, the upstream's key from
# OPENAI_API_KEY, and a first API key for the tenant `first`. Existing files are not changed.
set -eu
umask 077
cd "$(dirname "$0")"
mkdir -p secrets
cd secrets

random() {
	od -An -N32 -tx1 /dev/urandom | tr -d ' \n'
}

[ -e openai-api-key ] || printf %s "${OPENAI_API_KEY:?is the key of the upstream}" >openai-api-key
[ -e secret ] || random >secret
[ -e first-api-key ] || random >first-api-key
[ -e api-keys ] || printf 'first:%s' "$(sha256sum <first-api-key | cut -d ' ' -f 1)" >api-keys
[ -e redis-password ] || random >redis-password
[ -e redis-url ] || printf 'redis://tokencast:%s@tokencast-redis:6379/0' "$(cat redis-password)" >redis-url
# The password is required, and even with it nobody can reconfigure or empty Redis over the network. `default` cannot
# log in, but keeps its permissions: the append-only file is loaded in its name.
[ -e users.acl ] || cat >users.acl <<END
user default off resetpass ~* &* +@all
user tokencast on >$(cat redis-password) ~* &* +@all -@admin -@dangerous +info
END
