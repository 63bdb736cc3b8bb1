#!/usr/bin/env bash
# Measures Weir against its floors and peers on this machine: one command, everything it needs is set up.
#   benches/run.sh [--repeat N] [--only NAME,…]      report: benches/report.md
# Needs Rust, Python 3 with venv, and PostgreSQL 15 (test.sh installs it).
set -euo pipefail
cd "$(dirname "$0")/.."
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}"
work="${WEIR_BENCH_DIR:-$HOME/.cache/weir/bench}"
mkdir -p "$work"
if [ ! -x "$work/venv/bin/python" ]; then
  python3 -m venv "$work/venv"
fi
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
  duckdb tpchgen-cli pyarrow adbc-driver-manager adbc-driver-postgresql connectorx pandas
cargo build --release --workspace --locked
exec "$work/venv/bin/python" benches/bench.py --work "$work" --target "$CARGO_TARGET_DIR/release" "$@"
