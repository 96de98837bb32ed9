#!/usr/bin/env bash
# faults.sh - engines and controllers that are killed, hang and lie while clients ask (fault_checks.py).
exec python3 "${WEIR_SOURCE:?}/tests/integration/fault_checks.py" "${WEIR_BIN:?}/weir"
