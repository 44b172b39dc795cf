#!/bin/sh
# Replaces Redis's append-only file with a copy from the standard input: the archive of backup.sh, or an RDB file. Redis must be
# stopped. It runs where the files are, as the user to whom they belong; docs/backup.md has the commands.
#
# The argument is Redis's directory (/data).
set -eu
cd "${1:-/data}"
new=.restored.$$
trap 'rm -rf "$new"' EXIT
mkdir "$new"
cat >"$new/copy"

case $(head -c 5 "$new/copy") in
REDIS | VALKE)
	# With `appendonly yes`, Redis reads only the append-only file, whose base may be an RDB file.
	mkdir "$new/appendonlydir"
	mv "$new/copy" "$new/appendonlydir/appendonly.aof.1.base.rdb"
	echo "file appendonly.aof.1.base.rdb seq 1 type b" >"$new/appendonlydir/appendonly.aof.manifest"
	;;
*)
	tar -C "$new" -xf "$new/copy"
	;;
esac

# What is there is removed only now, when the copy is complete.
[ -s "$new/appendonlydir/appendonly.aof.manifest" ]
rm -rf appendonlydir
mv "$new/appendonlydir" appendonlydir
