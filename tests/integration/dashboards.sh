#!/usr/bin/env bash
# dashboards.sh - deploy/grafana and deploy/alerts.yaml name metrics that there are (dashboards.py).
exec python3 "${WEIR_SOURCE:?}/tests/integration/dashboards.py" "${WEIR_BIN:?}/weir"
