#!/usr/bin/env bash
# What tests use of PyPI, into a virtual environment in the target directory: `<target>/python`.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder="${CARGO_TARGET_DIR:-$PWD/target}/python"
wanted="$folder/installed.txt"
if cmp --quiet tests/python/requirements.txt "$wanted"; then exit 0; fi
python3 -m venv --clear "$folder"
"$folder/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: -r tests/python/requirements.txt
cp tests/python/requirements.txt "$wanted"
