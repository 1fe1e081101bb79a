#!/usr/bin/env bash
# The main job: A/B of two host kernels under a 32 GiB BAR.
#
#   ci/ab.sh [SCENARIO] [barometer run options]
#
# Does all the set-up by itself; ends with the verdict and the line `run: PATH`.
set -euo pipefail
top=$(readlink -f "$(dirname "$0")/..")
"$top/ci/setup.sh"
scenario="$top/fixtures/scenarios/debian-6.12-vs-7.toml"
case "${1:-}" in
  '' | -*) ;;
  *) scenario=$1; shift ;;
esac
exec "$top/.venv/bin/barometer" run "$scenario" "$@"
