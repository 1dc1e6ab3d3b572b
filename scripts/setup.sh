#!/usr/bin/env bash
# Set up everything in .venv: system packages (where apt-get may), pinned dependencies, this project editable.
# Does nothing if what it would install is what it installed last time. With the argument `slurm` also what the tests
# start a SLURM of their own from (tests/lab.py), with `browser` what they open a report in (tests/browser.py); they are
# skipped where these are not there.
set -euo pipefail
cd "$(dirname "$0")/.."

may_install() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }
apt_install() {
  echo "softmlp: apt-get install -y --no-install-recommends $*"
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends -qq "$@" >/dev/null
}

has_slurm() {
  local PATH=$PATH:/usr/sbin:/sbin
  for program in slurmctld slurmd srun munged slurmdbd sacct mariadbd mariadb-install-db my_print_defaults; do
    command -v "$program" >/dev/null || return 1
  done
  compgen -G '/usr/lib*/slurm*/accounting_storage_mysql.so' >/dev/null \
    || compgen -G '/usr/lib/*/slurm*/accounting_storage_mysql.so' >/dev/null
}
needs() { [[ " $wished " == *" $1 "* ]]; }
wished=$*
if needs slurm && ! has_slurm; then
  packages=(slurm-wlm munge slurmdbd slurm-wlm-mysql-plugin mariadb-server-core mariadb-client-core)
  if ! may_install || ! apt_install "${packages[@]}"; then
    echo "softmlp: SLURM is missing, and its tests with it: sudo apt-get install --no-install-recommends ${packages[*]}" >&2
  fi
fi
has_browser() { command -v chromium || command -v chromium-browser || command -v google-chrome; }
if needs browser && ! has_browser >/dev/null; then
  if ! may_install || ! apt_install chromium; then
    echo "softmlp: Chromium is missing, and the tests of the report in it: sudo apt-get install --no-install-recommends chromium" >&2
  fi
fi

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
  if may_install; then
    apt_install "${packages[@]}"
  else
    install="apt-get install -y --no-install-recommends ${packages[*]}"
    echo "softmlp: system packages are missing; run this and repeat: sudo apt-get update && sudo $install" >&2
    exit 1
  fi
fi

echo "softmlp: installing Python packages into .venv (about 3 GB, once)"
[ -x .venv/bin/python ] || "$python" -m venv .venv
.venv/bin/python -m pip install -q --disable-pip-version-check -r requirements.txt -r requirements-dev.txt -c constraints.txt
.venv/bin/python -m pip install -q --disable-pip-version-check --no-deps -e .
echo "$wanted" >"$stamp"
