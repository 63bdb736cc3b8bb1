#!/usr/bin/env bash
# The second of the README's two commands: installs what the tests need, then runs every check.
# `.ci/run` calls this and nothing else.
#
# Installs from Debian (with apt, as root or through sudo), when missing:
#   postgresql-15 (or the distribution's postgresql)  the real server that tests start for themselves
#   gcc, libc6-dev, pkg-config                        linking, and the C parts of SQLite, zstd and ring
#   util-linux                                        setpriv: PostgreSQL refuses to run as root
#   procps                                            kill, with which tests interrupt what they have started
#   python3, python3-venv                             a client of the API that is not ours, and TPC-H data
#   iproute2, nftables                                networks that can be cut; without root proxies do what they can
#   faketime                                          clocks that jump
# Installs from PyPI, into a virtual environment in the target directory: tests/python/requirements.txt.
# Installs with rustup, when missing: rustfmt, clippy. Nothing comes from npm.
set -euo pipefail
cd "$(dirname "$0")"

step() { printf '\n== %s (%s)\n' "$1" "$(date +%T)"; }

install_packages() {
  local missing=()
  command -v cc >/dev/null || missing+=(gcc libc6-dev)
  command -v setpriv >/dev/null || missing+=(util-linux)
  [ -x /bin/kill ] || [ -x /usr/bin/kill ] || missing+=(procps)
  compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null || missing+=(postgresql)
  python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3 python3-venv)
  command -v ip >/dev/null || [ -x /usr/sbin/ip ] || missing+=(iproute2)
  compgen -G '/usr/lib/*/faketime/libfaketimeMT.so.1' >/dev/null || missing+=(faketime)
  command -v nft >/dev/null || [ -x /usr/sbin/nft ] || missing+=(nftables)
  [ ${#missing[@]} -eq 0 ] && return 0
  local root=()
  if [ "$(id -u)" != 0 ]; then root=(sudo); fi
  # Debian would start a server of its own; the tests start theirs.
  local policy=/usr/sbin/policy-rc.d made=
  if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' | "${root[@]}" tee $policy >/dev/null
    "${root[@]}" chmod +x $policy
    made=1
  fi
  "${root[@]}" apt-get update -qq
  DEBIAN_FRONTEND=noninteractive "${root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}"
  [ -z "$made" ] || "${root[@]}" rm -f $policy
}

step "packages"
install_packages
tests/python/install.sh
rustup component list --installed 2>/dev/null | grep -q clippy || rustup component add clippy rustfmt

step "format"
cargo fmt --all --check

step "build"
cargo build --workspace --locked

step "lint"
cargo clippy --workspace --all-targets --locked -- -D warnings

step "test"
# Snapshots are compared, never written: neither those of `insta` nor those that UPDATE rewrites.
export INSTA_UPDATE=no INSTA_FORCE_PASS=0
unset UPDATE
cargo test --workspace --locked

step "done"
