"""Alert rules are PromQL, name what is measured, and say what to do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client import REGISTRY

import services.msgbus.app

ROOT = Path(__file__).parents[3]
_RULES: dict[str, Any] = yaml.safe_load((ROOT / "deploy/alerts/push.yaml").read_text())
_METRIC = re.compile(r"\b(kubegems_[a-z_]+)")


def _measured() -> set[str]:
    """Every sample name that msgbus can show; families without a sample yet count by their type."""
    found: set[str] = set()
    for family in REGISTRY.collect():
        endings = {"histogram": ("_bucket", "_count", "_sum"), "counter": ("_total",)}.get(family.type, ("",))
        found |= {family.name + ending for ending in endings}
    return found


def test_every_alert_asks_for_what_is_measured() -> None:
    """A renamed metric would silence its alert for good."""
    assert services.msgbus.app
    measured = _measured()
    rules = [rule for group in _RULES["spec"]["groups"] for rule in group["rules"]]
    assert len(rules) >= 8
    for rule in rules:
        asked = set(_METRIC.findall(rule["expr"]))
        assert asked, rule["alert"]
        assert asked <= measured, f"{rule['alert']}: {asked - measured}"


@pytest.mark.parametrize("file", sorted((ROOT / "deploy/alerts").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_expression_is_promql(file: Path) -> None:
    """A parser that knows Prometheus' functions and types reads each; the controls are refused."""
    rules = [rule for group in yaml.safe_load(file.read_text())["spec"]["groups"] for rule in group["rules"]]
    assert rules
    for rule in rules:
        promql_parser.parse(rule["expr"])
    for wrong in ("rate(kubegems_msgbus_refused_total) > 0", "sum by (reason rate(x[5m])", "rat(x[5m])"):
        with pytest.raises(ValueError, match=r"."):
            promql_parser.parse(wrong)


def test_every_alert_is_complete() -> None:
    """Each has a wait, a severity and words; names are unique; brackets are balanced."""
    assert (_RULES["apiVersion"], _RULES["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
    rules = [rule for group in _RULES["spec"]["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}, rule["alert"]
        assert re.fullmatch(r"\d+m", rule["for"])
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description"}
        for opening, closing in ("()", "[]", "{}"):
            assert rule["expr"].count(opening) == rule["expr"].count(closing), rule["alert"]
