#!/usr/bin/env bash
# state.sh - controllers and agents on one Redis: that they see one another, and that none of what happens to it costs a
# request (state_checks.py). Skips without redis-server.
exec python3 "${WEIR_SOURCE:?}/tests/integration/state_checks.py" "${WEIR_BIN:?}/weir"
