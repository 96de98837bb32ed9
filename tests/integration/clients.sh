#!/usr/bin/env bash
# clients.sh - the real OpenAI SDKs (Python, Node) through `weir serve`; skipped where they are not installed. The other
# clients take longer:  tests/integration/client_checks.py build/release/weir py node aiperf guidellm vegeta
exec python3 "${WEIR_SOURCE:?}/tests/integration/client_checks.py" "${WEIR_BIN:?}/weir" py node
