#!/bin/sh
# Pin the requirements of pyproject.toml, with hashes, for every Python and system it names.
# Usage: lock.sh [--upgrade]    Pinned versions stay as they are without --upgrade.
set -eu

pin() {
    .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
        --no-header --output-file "$@" pyproject.toml
}

pin deploy/requirements.lock --group build "$@"
pin deploy/requirements-dev.lock --extra dev --group build \
    --constraints deploy/requirements.lock "$@"
echo "Pinned: deploy/requirements.lock deploy/requirements-dev.lock"
