#!/bin/sh
# Install a lock file and this project into .venv, which is made when it is missing or broken.
# Usage: setup.sh LOCKFILE    Called by the Makefile, which remembers that it was done.
set -eu
lock=$1

say() { printf '%s\n' "$*" >&2; }

# Broken: made in another folder, or its Python is gone or too old.
works() {
    [ "$(cat .venv/.place 2>/dev/null || pwd -P)" = "$(pwd -P)" ] &&
        .venv/bin/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

install() {
    if ! .venv/bin/python -m pip install --quiet --disable-pip-version-check "$@"; then
        say "The packages of $lock could not be installed (pip says why above):" \
            "the first set-up needs a package index that pip can reach."
        exit 1
    fi
}

if ! works; then
    python=$(sh .ci/python.sh)
    say "Making .venv with $("$python" --version) ..."
    rm -rf .venv
    if ! "$python" -m venv .venv; then
        say "$python could not make a virtual environment in .venv (it says why above)."
        exit 1
    fi
fi
pwd -P >.venv/.place
say "Installing $lock into .venv ..."
install --require-hashes -r "$lock"
install --no-deps --no-build-isolation --editable .
