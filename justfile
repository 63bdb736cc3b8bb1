# `just verify` is what lands a change; the recipes call the same scripts as CI.

# Everything that CI checks.
verify: test
    command -v cargo-deny >/dev/null && cargo deny check || echo "cargo-deny is not installed: skipped"

# Mends what can be mended by itself, and writes the generated files again.
fix:
    cargo fmt --all
    cargo clippy --workspace --all-targets --fix --allow-dirty
    cargo run --quiet --bin weir -- schema > spec/pipeline.schema.json

# Installs what the tests need and runs them.
test:
    ./test.sh

# Against floors and peers; writes benches/report.md.
bench *ARGS:
    benches/run.sh {{ARGS}}

# Clusters against peers, and what their promises cost; writes the report's section "Cluster".
bench-cluster *ARGS:
    benches/cluster.sh {{ARGS}}

# The main job: files in, Parquet and SQLite out.
demo:
    cargo run --quiet --bin weir -- run examples/quickstart/pipeline.yaml
