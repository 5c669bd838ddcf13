"""The shipped rules and dashboard ask for what there is: a query for a metric that does not exist shows nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from agentlink.monitoring.metric_list import DEFINITIONS, Kind, sample_names
from tests.promtool import needs_promtool, promtool

DOCS = Path(__file__).parents[2] / "docs"
RULES, RULES_TEST = DOCS / "prometheus" / "rules.yml", DOCS / "prometheus" / "rules_test.yml"
DASHBOARD = DOCS / "grafana" / "agentlink.json"

# What Prometheus adds to every sample, and to histograms.
ADDED_LABELS = {"job", "instance", "le"}


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def queries() -> Iterator[tuple[str, str]]:
    for rule in rules():
        yield rule["alert"], rule["expr"]
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for variable in json.loads(DASHBOARD.read_text())["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], re.fullmatch(r"label_values\((.*), \w+\)", variable["query"]["query"])[1]  # type: ignore[index]


def names_in(query: str) -> set[str]:
    return set(re.findall(r"\bagentlink_\w+", query))


def labels_in(query: str) -> set[str]:
    matched = re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"', query)
    grouped = re.findall(r"\b(?:by|on|without|ignoring)\s*\(([^)]*)\)", query)
    return {*matched, *(label.strip() for labels in grouped for label in labels.split(",") if label.strip())}


@pytest.mark.parametrize(("where", "query"), list(queries()))
def test_a_query_asks_for_metrics_and_labels_that_exist(where: str, query: str) -> None:
    known, asked = sample_names(), names_in(query)
    assert asked, "a query of AgentLink's dashboard is about AgentLink"
    assert asked <= known.keys(), where
    labels = {label for name in asked for label in known[name].labels}
    assert labels_in(query) <= labels | ADDED_LABELS, where


def test_the_texts_of_alerts_and_legends_use_labels_that_exist() -> None:
    for rule in rules():
        texts = [rule["annotations"]["summary"], rule["annotations"]["description"]]
        _check_labels(re.findall(r"\$labels\.(\w+)", " ".join(texts)), rule["expr"])
    for panel in panels():
        for target in panel["targets"]:
            _check_labels(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]), target["expr"])


def _check_labels(used: list[str], query: str) -> None:
    known = sample_names()
    by = re.search(r"\bby\s*\(([^)]*)\)", query)
    there = {part.strip() for part in by[1].split(",")} if by else {*known[min(names_in(query))].labels}
    assert set(used) <= there, query


def test_every_metric_but_these_is_on_the_dashboard() -> None:
    """What is measured is to be seen."""
    shown = {sample_names()[name] for _, query in queries() for name in names_in(query)}
    left_out = {one.name for one in DEFINITIONS if one not in shown}
    assert left_out == {"worker_told_timestamp_seconds", "worker_slots_max"}


def test_names_follow_the_rules_of_prometheus() -> None:
    assert len({one.name for one in DEFINITIONS}) == len(DEFINITIONS)
    for one in DEFINITIONS:
        assert re.fullmatch(r"[a-z][a-z_]*[a-z]", one.name)
        assert not one.name.endswith(("_total", "_count", "_sum", "_bucket")), "these are for samples"
        assert one.kind is not Kind.HISTOGRAM or one.name.endswith("_seconds")
        assert one.says.endswith(".")


@needs_promtool
def test_prometheus_takes_the_rules() -> None:
    promtool("check", "rules", str(RULES))


@needs_promtool
def test_each_alert_fires_for_its_cause_and_ends_with_it() -> None:
    promtool("test", "rules", str(RULES_TEST))


def test_each_alert_has_a_test() -> None:
    tested = set(re.findall(r'alertname="(\w+)"', RULES_TEST.read_text()))
    assert tested == {rule["alert"] for rule in rules()}


def test_each_alert_says_how_bad_it_is_and_what_to_do() -> None:
    for rule in rules():
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description"}


def test_the_panels_of_the_dashboard_lie_beside_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not taken & cells
        taken |= cells
