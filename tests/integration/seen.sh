#!/usr/bin/env bash
# seen.sh - what `weir serve` lets others see: request log, headers, forecasts, metrics, weir top (seen_checks.py).
exec python3 "${WEIR_SOURCE:?}/tests/integration/seen_checks.py" "${WEIR_BIN:?}/weir"
