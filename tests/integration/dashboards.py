#!/usr/bin/env python3
"""The dashboard and the alert rules of deploy/ against the table of metrics: every metric that they name is one that weir
serve has, is used as what it is (a rate of counters only, quantiles of histograms only), and every rule parses.

    dashboards.py PATH/TO/weir

Where promtool is installed, it checks the rules as well.
"""
import json
import pathlib
import re
import shutil
import subprocess
import sys

DEPLOY = pathlib.Path(__file__).resolve().parent.parent.parent / "deploy"
RULE = re.compile(r"^      - alert: (\w+)$")
FIELD = re.compile(r"^        (expr|for|labels|annotations): (.+)$")


def metrics(weir):
    page = subprocess.run([weir, "serve", "--metrics-page"], capture_output=True, text=True, check=True).stdout
    table = dict(re.findall(r"^\| `(weir_\w+)` \| (\w+) \|", page, re.M))
    series = {}
    for name, kind in table.items():
        series[name] = kind
        if kind == "histogram":
            series.update({name + "_bucket": "bucket", name + "_sum": "counter", name + "_count": "counter"})
            del series[name]
    return series


def check_expression(where, text, series):
    """PromQL as far as it is used here: brackets close, names exist and are used as what they are."""
    opened = []
    for c in re.sub(r'"[^"]*"', "", text):
        if c in "([{":
            opened.append(c)
        elif c in ")]}":
            assert opened and opened.pop() + c in ("()", "[]", "{}"), f"{where}: brackets do not match in {text}"
    assert not opened, f"{where}: brackets do not match in {text}"
    assert not re.search(r"[-+*/<>=]\s*$|^\s*[*/<>=]", text), f"{where}: an operator lacks a side in {text}"
    names = re.findall(r"\bweir_\w+", text)
    assert names, f"{where}: no metric in {text}"
    for name in names:
        assert name in series, f"{where}: no metric is called {name}"
    for function, name in re.findall(r"\b(rate|increase)\((weir_\w+)\[", text):
        assert series[name] in ("counter", "bucket"), f"{where}: {function} of {name}, which is a {series[name]}"
    for name in names:
        ranged = re.search(rf"\b(rate|increase)\({name}\[", text)
        assert series[name] not in ("counter", "bucket") or ranged, f"{where}: {name} is a counter: rate or increase of it"
    if any(series[n] == "bucket" for n in names):
        assert "histogram_quantile(" in text and "by (le)" in text, f"{where}: buckets without histogram_quantile"


def check_rules(series):
    text = (DEPLOY / "alerts.yaml").read_text()
    rules, name = {}, None
    for line in text.splitlines():
        if found := RULE.match(line):
            name = found.group(1)
            assert name not in rules, f"alerts.yaml: {name} twice"
            rules[name] = {}
        elif found := FIELD.match(line):
            rules[name][found.group(1)] = found.group(2)
        else:
            assert re.fullmatch(r"#.*|groups:|  - name: \w+|    rules:", line), f"alerts.yaml: not understood: {line}"
    assert rules
    for name, rule in rules.items():
        assert {"expr", "labels", "annotations"} <= rule.keys(), f"alerts.yaml: {name} lacks a field"
        check_expression(f"alerts.yaml: {name}", rule["expr"], series)
        assert re.fullmatch(r"\d+[smh]", rule.get("for", "1m")), f"alerts.yaml: {name}: for"
        assert re.fullmatch(r"\{severity: (page|ticket)\}", rule["labels"]), f"alerts.yaml: {name}: labels"
        assert re.fullmatch(r'\{summary: "[^"]+"\}', rule["annotations"]), f"alerts.yaml: {name}: annotations"
    if shutil.which("promtool"):
        subprocess.run(["promtool", "check", "rules", DEPLOY / "alerts.yaml"], check=True)
    return len(rules)


def check_dashboard(series):
    board = json.loads((DEPLOY / "grafana/weir.json").read_text())
    taken = set()
    for panel in board["panels"]:
        grid = panel["gridPos"]
        assert (grid["x"], grid["y"]) not in taken and grid["x"] + grid["w"] <= 24, f"weir.json: {panel['title']} has no place"
        taken.add((grid["x"], grid["y"]))
        assert panel["targets"], f"weir.json: {panel['title']} shows nothing"
        for target in panel["targets"]:
            check_expression(f"weir.json: {panel['title']}", target["expr"], series)
    assert len({p["id"] for p in board["panels"]}) == len(board["panels"])
    return len(board["panels"])


def check_the_check(series):
    for bad in ("rate(weir_requests_total[5m]", "weir_requests_total > 3", "rate(weir_live_requests[5m])", "weir_no_such > 1",
                "weir_live_requests >", "rate(weir_ttft_seconds_bucket[5m])"):
        try:
            check_expression("", bad, series)
        except AssertionError:
            continue
        raise AssertionError(f"this was let through: {bad}")


series = metrics(sys.argv[1])
check_the_check(series)
print(f"{check_rules(series)} rules and {check_dashboard(series)} panels fit the {len(series)} series of weir serve")
