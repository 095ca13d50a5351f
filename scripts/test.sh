#!/usr/bin/env bash
# Sets up the environment and runs the checks: lint, then all tests.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh" "[test]"

ruff check .
python -m pytest "$@"
