"""The alert rules that are shipped, read as Prometheus reads them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import promql_parser
import yaml

FOLDER = Path(__file__).parents[2] / "deploy/alerts"
_BY = re.compile(r"\b(?:by|on) \(([^)]*)\)")


def rules(file: str = "jobs.yaml") -> list[dict[str, Any]]:
    """The rules of a file; fails for what is no PrometheusRule."""
    document = yaml.safe_load((FOLDER / file).read_text())
    assert (document["apiVersion"], document["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
    return [rule for group in document["spec"]["groups"] for rule in group["rules"]]


def selectors(expression: str) -> dict[str, set[str]]:
    """Metrics of an expression with the labels that it reads; ValueError for what Prometheus would refuse."""
    found: dict[str, set[str]] = {}
    _collect(promql_parser.parse(expression), found)
    grouped = {label.strip() for labels in _BY.findall(expression) for label in labels.split(",")}
    return {metric: labels | grouped for metric, labels in found.items()}


def _collect(part: Any, found: dict[str, set[str]]) -> None:
    if isinstance(part, promql_parser.VectorSelector):
        found.setdefault(str(part.name), set()).update(matcher.name for matcher in part.matchers.matchers)
    for name in ("lhs", "rhs", "expr", "param", "vector_selector"):
        if (inner := getattr(part, name, None)) is not None:
            _collect(inner, found)
    for inner in getattr(part, "args", ()):
        _collect(inner, found)
