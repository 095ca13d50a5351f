#!/usr/bin/env bash
# Sets up the environment and runs the checks: lint, then all tests.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh" "[test]"

ruff check .
python -m pytest -n 2 "$@"  # two processes: one would take twice as long, more would want more memory
