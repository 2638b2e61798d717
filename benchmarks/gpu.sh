#!/bin/sh
# Runs the device tests, and W1 to W9 with a plain hook as the peer, on a machine with a GPU.
# It takes less than four minutes and installs nothing.

usage() {
    cat <<'TEXT'
Usage: PYTHON=python3 benchmarks/gpu.sh [--device cuda] [--seconds 2] [--only W1]... [--json FILE]

Runs the device tests, then W1 to W9, and prints one table.

PYTHON          interpreter with the service's and the tests' packages (default python3)
--device NAME   torch device; `cpu` tries the script on a machine without a GPU (default cuda)
--seconds N     seconds for each comparison (default 2)
--only NAME     workload instead of W1 to W9; repeatable
--json FILE     file for the rows (default build/benchmarks/gpu.json)

Exit code: 0 if all passed, 1 if a device test or a workload failed, 2 for an unknown option or a
Python without the packages, 3 if there is no GPU.
TEXT
}

refuse() { # exit code, message
    echo "gpu.sh: $2" >&2
    exit "$1"
}

device=cuda seconds=2 only='' json=build/benchmarks/gpu.json
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) usage; exit 0 ;;
        --device | --seconds | --only | --json)
            [ $# -gt 1 ] || refuse 2 "$1 needs a value"
            case $1 in
                --device) device=$2 ;;
                --seconds) seconds=$2 ;;
                --only) only="$only --only $2" ;;
                --json) json=$2 ;;
            esac
            shift 2 ;;
        *) usage >&2; refuse 2 "unknown option $1" ;;
    esac
done
case $device in cuda | cuda:* | cpu) ;; *) refuse 2 "unknown device $device" ;; esac
: "${only:= --only W1 --only W2 --only W3 --only W4 --only W5 --only W6 --only W7 --only W8 --only W9}"

python=$(command -v "${PYTHON:-python3}") || refuse 2 "no Python at ${PYTHON:-python3}; set PYTHON"
case $python in /*) ;; *) python=$PWD/$python ;; esac
case $json in /*) ;; *) json=$PWD/$json ;; esac
cd "$(dirname "$0")/.." || exit 2
export PYTHONPATH="$PWD" HF_HUB_OFFLINE=1 OMP_WAIT_POLICY=PASSIVE

"$python" -c 'import pytest, benchmarks.run' || refuse 2 "$python lacks packages, see above"
if [ "$device" != cpu ]; then
    "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
        refuse 3 "there is no GPU: torch.cuda.is_available() is false in $python"
fi

failed=0
# Device tests are those that run on a GPU as well, if there is one.
tests=$(grep -rl 'cuda\.is_available' tests --include='test_*.py')
# shellcheck disable=SC2086  # both are lists of words
"$python" -m pytest -p no:cacheprovider -k "${device%%:*}" $tests || failed=1
mkdir -p "$(dirname "$json")"
# shellcheck disable=SC2086
"$python" -m benchmarks --device "$device" --no-peers --seconds "$seconds" --json "$json" $only ||
    failed=1
[ "$failed" = 0 ] || echo "gpu.sh: a device test or a workload failed, see above" >&2
exit "$failed"
