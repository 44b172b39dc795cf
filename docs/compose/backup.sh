#!/bin/sh
# Writes a copy of Redis's append-only file as a tar archive to the standard output, while Redis runs. It runs where the files
# are, as the user to whom they belong:
#
#   docker compose exec -T -u redis redis sh -s < docs/compose/backup.sh > backup.tar
#
# The argument is Redis's directory (/data).
set -eu
cd "${1:-/data}"
copy=.backup.$$
trap 'rm -rf "$copy"' EXIT

# A second name keeps a file that Redis removes meanwhile, when it rewrites the append-only file. If one is missing
# already, the list is out of date.
link() {
	rm -rf "$copy"
	mkdir -p "$copy/appendonlydir"
	cp appendonlydir/appendonly.aof.manifest "$copy/appendonlydir/"
	sed -n 's/^file \([^ ]*\) .* type [bi]$/\1/p' "$copy/appendonlydir/appendonly.aof.manifest" |
		while read -r name; do ln "appendonlydir/$name" "$copy/appendonlydir/$name" || exit 1; done
}

until link; do :; done

# tar ends with 1 if a file grew meanwhile, which is harmless: Redis drops an incomplete command at the end.
tar -C "$copy" -cf - appendonlydir || [ $? -eq 1 ]
