#!/usr/bin/env bash
# Run the tests.
#
#   ci/test.sh                   a landing: unit tests, linters, every capability once on real
#                                machines, and all tests of what changed (ci/groups.toml)
#   ci/test.sh --full            every test
#   ci/test.sh --quick           pure tests only, half a minute
#   ci/test.sh --prove GROUP...  all tests of these groups of ci/groups.toml
#
# Logs and junit files are in .results/. A single test: .venv/bin/python -m pytest FILE -k NAME
set -euo pipefail
cd "$(dirname "$0")/.."
unset PYTHONDONTWRITEBYTECODE   # compiling 240 modules anew takes longer than reading them
ci/setup.sh --tests
exec .venv/bin/python -m ci.lanes "$@"
