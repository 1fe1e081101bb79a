#!/usr/bin/env bash
# Build the documentation as a site: docs/ into site/. A page or an anchor that a link names and
# that is not there ends it with an error. What it needs is in .venv-docs, from
# ci/requirements-docs.lock; once that is there, nothing is fetched.
set -euo pipefail
cd "$(dirname "$0")/.."

lock=ci/requirements-docs.lock
stamp=.venv-docs/.made-of
if ! cmp -s "$lock" "$stamp"; then
  rm -rf .venv-docs
  /usr/bin/python3 -m venv .venv-docs
  .venv-docs/bin/python -m pip install -qq --disable-pip-version-check --no-deps --require-hashes -r "$lock"
  cp "$lock" "$stamp"
fi
if ! output=$(NO_COLOR=1 .venv-docs/bin/zensical build --strict --clean 2>&1); then
  printf '%s\n' "$output" >&2
  exit 1
fi
echo "site/index.html"
