#!/bin/sh
# Replaces the containers of a service, such as `worker`, with those of the current image and settings. As many new ones are
# started first; the old ones are stopped, with their stop_grace_period, when all new ones are healthy.
#
#   sh docs/compose/replace.sh worker
#
# The service must publish no fixed port. COMPOSE is the command of Compose, with its options.
set -eu
service=${1:?is the name of a service}
compose=${COMPOSE:-docker compose}

old=$($compose ps -q "$service")
number=$(printf %s "$old" | wc -w)
[ "$number" -gt 0 ] || { echo "No container of $service is running." >&2; exit 1; }

scale() {
	$compose up -d --no-deps --no-build --no-recreate --scale "$service=$1" "$service"
}

scale $((2 * number))
for container in $($compose ps -q "$service"); do
	tries=${TRIES:-120}
	until [ "$(docker inspect --format '{{.State.Health.Status}}' "$container")" = healthy ]; do
		tries=$((tries - 1))
		if [ "$tries" -le 0 ]; then
			echo "Container $container is not healthy. Nothing was stopped." >&2
			exit 1
		fi
		sleep 1
	done
done

# Word splitting is intended: several containers, all stopped at once.
docker stop $old
docker rm $old
