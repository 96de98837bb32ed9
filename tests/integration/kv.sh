#!/usr/bin/env bash
# kv.sh - KV events of mock engines, read by `weir serve`: gaps, restarts, hangs (kv_checks.py).
exec python3 "${WEIR_SOURCE:?}/tests/integration/kv_checks.py" "${WEIR_BIN:?}/weir"
