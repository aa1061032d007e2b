#!/bin/sh
# Print the Python that .venv is made with: $PYTHON, else the first of the list below that runs.
# 3.12 and 3.11 come first because the wheel with a private Redis exists for these two.
# Without one: a sentence on standard error, and exit status 1.

# Exit status: 3 too old, 4 without what makes virtual environments (Debian splits it off).
probe='
import sys
if sys.version_info < (3, 11):
    sys.exit(3)
try:
    import ensurepip, venv
except ImportError:
    sys.exit(4)
'

without_venv=
if [ -n "${PYTHON:-}" ]; then
    set -- "$PYTHON"
else
    set -- python3.12 python3.11 python3.13 python3
fi
for python in "$@"; do
    # A name on PATH proves nothing: version managers put names there that only fail.
    status=0
    "$python" -c "$probe" >/dev/null 2>&1 || status=$?
    case $status in
        0) echo "$python"; exit 0 ;;
        4) without_venv=${without_venv:-$python} ;;
    esac
done

if [ -n "$without_venv" ]; then
    version=$("$without_venv" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    echo "Python $version is here but cannot make virtual environments:" \
        "install the package python$version-venv (Debian, Ubuntu), then try again." >&2
elif [ -n "${PYTHON:-}" ]; then
    echo "PYTHON=$PYTHON is no Python of version 3.11 or newer: name another one." >&2
else
    echo "Python 3.11 or newer is missing: install it, or say where it is with" \
        "PYTHON=/path/to/python3." >&2
fi
exit 1
