#!/usr/bin/env bash
# Makes the controller's virtual environment in .venv from hash-locked requirements. Does nothing when nothing changed.
# Usage: ./setup.sh [dev]     with dev also what the tests and linters need
set -euo pipefail
cd "$(dirname "$0")"
kind=${1:-controller}

fail() { printf '\nsetup: %s\n' "$*" >&2; exit 1; }
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }
digest() { cat requirements/bootstrap.txt "requirements/$1.txt" | sha256sum | cut -d' ' -f1; }

find_python() {
    local name
    for name in python3 python3.14 python3.13 python3.12 python3.11; do
        # Run it: a version manager's shim may be there without the version behind it.
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    fail "no Python 3.11 or newer found. Install one: apt-get install python3 (Debian 12, Ubuntu 24.04) or python3.11 (Ubuntu 22.04)."
}

# What `dev` installs holds everything that `controller` does.
have=$(cat .venv/.groundcrew-requirements 2>/dev/null || true)
if [ "$have" = "$(digest "$kind")" ] || [ "$have" = "$(digest dev)" ]; then
    if .venv/bin/python -c 'import ansible' 2>/dev/null; then exit 0; fi
fi

if [ "$(id -u)" != 0 ] && ! command -v sudo >/dev/null && ! docker info >/dev/null 2>&1; then
    fail "you are '$(id -un)', there is no sudo, and no Docker Engine answers. Run as root, or install sudo or Docker first."
fi
free=$(df -Pk . | awk 'NR == 2 {print int($4 / 1048576)}')
[ "$free" -ge 10 ] || fail "$free GB are free under $PWD, 10 GB are needed. Make room, then run it again. Nothing was changed."

echo "setup | Virtual environment in .venv from requirements/$kind.txt"
python=$(find_python)
if ! "$python" -c 'import ensurepip' 2>/dev/null || ! command -v ssh >/dev/null; then
    echo "setup | python3-venv and openssh-client from the distribution"
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        python3-venv openssh-client ca-certificates >/dev/null
fi
# In place: the AWS stand-in of a running environment lives from the same folder.
.venv/bin/python -c '' 2>/dev/null || "$python" -m venv --clear .venv
unreachable="the Python package registry does not answer. Check the network, a proxy (https_proxy), PIP_INDEX_URL and, where TLS is
re-signed, SSL_CERT_FILE; then run it again. Nothing but .venv was touched."
.venv/bin/python -m pip install -qq --disable-pip-version-check --retries 1 --require-hashes -r requirements/bootstrap.txt ||
    fail "$unreachable"
# uv is ten times as fast; pip reads pip.conf and knows more kinds of private index, so it is the second try.
if ! VIRTUAL_ENV=$PWD/.venv .venv/bin/uv --quiet pip install --require-hashes -r "requirements/$kind.txt"; then
    echo "setup | uv could not install them; trying pip"
    .venv/bin/python -m pip install -qq --disable-pip-version-check --require-hashes -r "requirements/$kind.txt" ||
        fail "$unreachable"
fi
digest "$kind" >.venv/.groundcrew-requirements
