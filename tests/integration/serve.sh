#!/usr/bin/env bash
# serve.sh - `weir serve` in front of `weir mock` engines, as real processes and real HTTP clients (serve_checks.py).
exec python3 "${WEIR_SOURCE:?}/tests/integration/serve_checks.py" "${WEIR_BIN:?}/weir"
