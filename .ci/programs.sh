#!/bin/sh
# Install the programs of .ci/programs that are missing: only as root, only on Debian and Ubuntu.
# A package that brings a service leaves none running: the tests start their own.
# It never fails the tests by itself: the tests that need the program are skipped then, and say so.
set -eu

say() { printf '%s\n' "$*" >&2; }

packages=
services=
while read -r binary package service; do
    case $binary in '' | '#'*) continue ;; esac
    command -v "$binary" >/dev/null && continue
    packages="$packages $package"
    services="$services $service"
done <.ci/programs
[ -n "$packages" ] || exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1 ||
    ! grep -Eqi '^ID(_LIKE)?=.*(debian|ubuntu)' /etc/os-release 2>/dev/null; then
    say "Missing, so some tests will be skipped; install the packages:$packages"
    exit 0
fi

# Debian starts a service as soon as it is installed, unless this file forbids it.
policy=/usr/sbin/policy-rc.d
mark="# Made by .ci/programs.sh while it installs packages; remove it if you find it."
if [ ! -e "$policy" ] || grep -qF "$mark" "$policy"; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 1' HUP INT TERM
    printf '#!/bin/sh\n%s\nexit 101\n' "$mark" >"$policy"
    chmod 755 "$policy"
fi

say "Installing with apt-get what only tests need:$packages"
export DEBIAN_FRONTEND=noninteractive
quietly() {
    # Ten minutes: a slow mirror is waited for, a hung one is not.
    output=$(timeout 600 "$@" 2>&1) || { say "$output"; return 1; }
}
quietly apt-get update || say "apt-get update failed: going on with the lists that are here."
# Unquoted: a list of words.
# shellcheck disable=SC2086
quietly apt-get install --yes --no-install-recommends -o DPkg::Lock::Timeout=300 $packages ||
    say "apt-get could not install$packages: their tests will be skipped."

# Nor shall the next boot start them.
for service in $services; do
    if command -v systemctl >/dev/null; then
        systemctl disable --now "$service" >/dev/null 2>&1 || true
    elif command -v update-rc.d >/dev/null; then
        update-rc.d "$service" disable >/dev/null 2>&1 || true
    fi
done
