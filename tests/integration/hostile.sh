#!/usr/bin/env bash
# hostile.sh - clients and engines that mean harm, against `weir serve` (hostile_checks.py).
exec python3 "${WEIR_SOURCE:?}/tests/integration/hostile_checks.py" "${WEIR_BIN:?}/weir"
