#!/usr/bin/env bash
# Sets up the environment and runs the checks: lint, then all tests.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh" "[test]"

ruff check .
# Two processes: one would take twice as long, more would want more memory. A file goes to one of them as a whole, since
# its tests share what they have set up and compiled; tests/conftest.py has the order.
python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
