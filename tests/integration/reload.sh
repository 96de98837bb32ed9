#!/usr/bin/env bash
# reload.sh - SIGHUP and SIGUSR2 of `weir serve` under load, as real processes (reload_checks.py).
exec python3 "${WEIR_SOURCE:?}/tests/integration/reload_checks.py" "${WEIR_BIN:?}/weir"
