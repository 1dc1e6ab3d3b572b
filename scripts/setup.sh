#!/usr/bin/env bash
# Set up everything in .venv: system packages (where apt-get may), pinned dependencies, this project editable.
# Does nothing if what it would install is what it installed last time.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
stamp=.venv/softmlp-setup
wanted=$(cat requirements.txt requirements-dev.txt constraints.txt pyproject.toml scripts/setup.sh | sha256sum)
[ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && exit 0

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "softmlp: needs Python 3.11 or newer; PYTHON=python3.11 make ..." >&2; exit 2; }

# What FFCV is built from, and what a Debian python3 leaves out.
packages=()
command -v g++ >/dev/null || packages+=(g++)
command -v pkg-config >/dev/null || packages+=(pkg-config)
pkg-config --exists opencv4 2>/dev/null || packages+=(libopencv-dev)
pkg-config --exists libturbojpeg 2>/dev/null || packages+=(libturbojpeg0-dev)
"$python" -c 'import ensurepip' 2>/dev/null || packages+=(python3-venv)
"$python" -c 'import os, sysconfig, sys; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' || packages+=(python3-dev)
if [ ${#packages[@]} -gt 0 ]; then
  install="apt-get install -y --no-install-recommends ${packages[*]}"
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "softmlp: $install"
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive $install -qq >/dev/null
  else
    echo "softmlp: system packages are missing; run this and repeat: sudo apt-get update && sudo $install" >&2
    exit 1
  fi
fi

echo "softmlp: installing Python packages into .venv (about 3 GB, once)"
[ -x .venv/bin/python ] || "$python" -m venv .venv
.venv/bin/python -m pip install -q --disable-pip-version-check -r requirements.txt -r requirements-dev.txt -c constraints.txt
.venv/bin/python -m pip install -q --disable-pip-version-check --no-deps -e .
echo "$wanted" >"$stamp"
