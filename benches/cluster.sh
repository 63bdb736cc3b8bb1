#!/usr/bin/env bash
# Measures a cluster of Weir on this machine: one command, everything it needs is set up.
#   benches/cluster.sh [--rounds N] [--only tpch,exchange,…] [--scale N]      report: benches/report.md, "Cluster"
# Needs Rust, Python 3 with venv, and PostgreSQL (test.sh installs it). Half an hour when all is built.
set -euo pipefail
cd "$(dirname "$0")/.."
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}"
work="${WEIR_BENCH_DIR:-$HOME/.cache/weir/bench}"
mkdir -p "$work"
if [ ! -x "$work/venv/bin/python" ]; then
  python3 -m venv "$work/venv"
fi
"$work/venv/bin/pip" install --quiet --disable-pip-version-check duckdb tpchgen-cli
tests/python/install.sh
options=(--release --workspace --locked --features weir-benches/ballista)
cargo build "${options[@]}"
# Failovers and backfills are measured by the tests that check them.
cargo test "${options[@]}" --test it --no-run
exec "$work/venv/bin/python" benches/cluster.py --work "$work" --target "$CARGO_TARGET_DIR/release" "$@"
