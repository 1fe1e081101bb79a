#!/usr/bin/env bash
# Every test: linters, types, layers, unit, ssh, browser, vm, nested.
#
#   ci/test.sh [pytest options]      for example: ci/test.sh -m "not vm and not nested"
set -euo pipefail
cd "$(dirname "$0")/.."
ci/setup.sh --tests
ci/setup.sh --late
exec .venv/bin/python -m pytest "$@"
