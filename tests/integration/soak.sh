#!/usr/bin/env bash
# soak.sh - a short soak; the long one: tests/integration/soak.py build/release/weir 120
exec python3 "${WEIR_SOURCE:?}/tests/integration/soak.py" "${WEIR_BIN:?}/weir" 12
