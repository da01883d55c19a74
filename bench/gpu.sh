#!/usr/bin/env bash
# Every figure of one GPU, unattended: bench/gpu.sh [--minutes 9] [--json results/gpu.json] [--tiny] [--device cuda]
# The most important parts come first and the file is written after each, so it can be stopped at any time.
# WHEELS=FOLDER installs what is missing from wheels, for a machine without network; COMMIT=… names the commit outside a clone.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ]; then python=.venv/bin/python; fi
if [ -n "${WHEELS:-}" ]; then
  site=$(mktemp -d); trap 'rm -rf "$site"' EXIT
  "$python" -m pip install -q --no-index --no-deps --no-compile --target "$site" "$WHEELS"/*.whl
fi
PYTHONPATH="$PWD${site:+:$site}${PYTHONPATH:+:$PYTHONPATH}" "$python" -m liveavatar_nb.wan.gpu "$@"
