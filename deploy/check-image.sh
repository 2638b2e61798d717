#!/usr/bin/env bash
# Builds the image, checks its labels, and starts it as compose does: non-root, read-only root, no capabilities. Checks
# that the health check turns healthy, that the service answers a request, and that SIGTERM ends it with status 0.
#
#   ENGINE=podman deploy/check-image.sh     engine: docker if it runs, else podman
#   BUILD_FLAGS="--build-arg TORCH_INDEX="  more flags for the build
set -euo pipefail
cd "$(dirname "$0")/.."

image=${IMAGE:-deltaw}
engine=${ENGINE:-$(docker info >/dev/null 2>&1 && echo docker || echo podman)}
version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' service/__init__.py)
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
flags=(--build-arg "VERSION=$version" --build-arg "REVISION=$revision" ${BUILD_FLAGS:-})
hardened=(--read-only --cap-drop ALL --security-opt no-new-privileges)
if [ "$engine" = podman ]; then
    flags+=(--format docker)
    # Makes /tmp read-only too, as with docker.
    hardened+=(--read-only-tmpfs=false)
fi
containers=()
trap 'for c in "${containers[@]}"; do "$engine" rm --force "$c" >/dev/null; done' EXIT

fail() { echo "check-image: $*" >&2; exit 1; }
say() { printf '%-34s %s\n' "$1" "$2"; }

start() {
    container=$("$engine" run --detach "${hardened[@]}" "$@" \
        --env DELTAW_INSECURE=true --env HF_HUB_OFFLINE=1 --publish 127.0.0.1::8000 "$image")
    containers+=("$container")
}

ended() { "$engine" inspect --format '{{.State.ExitCode}}' "$container"; }

# docker runs the image's HEALTHCHECK by itself; podman needs a systemd for that, so it is asked to.
healthy() {
    if [ "$engine" = podman ]; then
        podman healthcheck run "$container" >/dev/null 2>&1
    else
        [ "$(docker inspect --format '{{.State.Health.Status}}' "$container")" = healthy ]
    fi
}

"$engine" build "${flags[@]}" --tag "$image" .
say "image" "$("$engine" image inspect --format '{{.Size}}' "$image" | awk '{printf "%.0f MB", $1 / 1e6}')"

labelled() {
    found=$("$engine" image inspect --format "{{index .Config.Labels \"org.opencontainers.image.$1\"}}" "$image")
    [ "$found" = "$2" ] || fail "the label $1 is \`$found\`, not \`$2\`"
}
labelled title deltaw
labelled version "$version"
labelled revision "$revision"
labelled licenses Apache-2.0
say "labels" "$version, revision ${revision:0:12}, Apache-2.0"

start
healthy && fail "healthy before the model is loaded"
for _ in $(seq 120); do
    healthy && break
    [ "$("$engine" inspect --format '{{.State.Running}}' "$container")" = true ] || fail "$("$engine" logs "$container" 2>&1)"
    sleep 1
done
healthy || fail "not healthy in two minutes: $("$engine" logs "$container" 2>&1)"
say "health check" "fails at first, then healthy"

[ "$("$engine" exec "$container" id -u)" = 10001 ] || fail "not user 10001"
for place in /app /tmp; do
    "$engine" exec "$container" touch $place/x 2>/dev/null && fail "$place can be written"
done
say "user 10001, read-only root" "yes, /tmp too"

url=http://$("$engine" port "$container" 8000/tcp | head -1)
asked='{"context": "The capital of Germany is", "query": " Berlin", "layers": [5]}'
answer=$(curl --silent --show-error --fail --max-time 60 -H 'Content-Type: application/json' -d "$asked" "$url/v1/equivalence-checks")
[[ $answer == *'"holds":true'* ]] || fail "the equivalence check does not hold: $answer"
say "an equivalence check, from outside" "holds"
asked='{"kind": "token", "context": "The capital of Germany is", "query": " Berlin"}'
answer=$(curl --silent --show-error --fail --max-time 60 -H 'Content-Type: application/json' -d "$asked" "$url/v1/adapters")
[[ $answer == *'"exact":true'* ]] || fail "the adapter is not exact: $answer"
say "an adapter, on its volume" "written and read back"

"$engine" stop --time 30 "$container" >/dev/null
[ "$(ended)" = 0 ] || fail "SIGTERM ended it with $(ended)"
say "SIGTERM when ready" "exit code 0"

# Starts it with an init, as compose does. Before Python has set its handler, SIGTERM ends the process with 143.
start --init
sleep 1
"$engine" stop --time 30 "$container" >/dev/null
code=$(ended)
[ "$code" = 0 ] || [ "$code" = 143 ] || fail "SIGTERM while it starts ended it with $code"
say "SIGTERM while it starts" "exit code $code"
