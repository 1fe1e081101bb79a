#!/usr/bin/env bash
# The main job: A/B of two host kernels under a 32 GiB BAR.
#
#   ci/ab.sh [SCENARIO] [barometer run options]
#
# Does all the set-up by itself; ends with the verdict and the line `run: PATH`.
# `ci/ab.sh --help` prints this; `barometer run --help` the options.
set -euo pipefail
case " $* " in
  *" -h "* | *" --help "*) sed -n '2,/^set /{s/^# \{0,1\}//;/^set /d;p}' "$0"; exit 0 ;;
esac
top=$(readlink -f "$(dirname "$0")/..")
"$top/ci/setup.sh"
scenario="$top/fixtures/scenarios/debian-6.12-vs-7.toml"
case "${1:-}" in
  '' | -*) ;;
  *) scenario=$1; shift ;;
esac
exec "$top/.venv/bin/barometer" run "$scenario" "$@"
