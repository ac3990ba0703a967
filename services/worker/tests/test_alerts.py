"""The alert rules that are shipped watch figures that exist."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from prometheus_client import REGISTRY

from libs.jobs import metrics
from services.worker import platform_jobs

RULES = Path(__file__).parents[3] / "deploy/alerts/jobs.yaml"


def test_each_alert_watches_a_figure_that_is_measured() -> None:
    """Every metric named in a rule is registered, with the labels that the rule reads; every rule says what to do."""
    assert metrics.CLAIMS is not None
    assert platform_jobs.WARN

    known = {sample for family in REGISTRY.collect() for sample in (family.name, *(f"{family.name}{end}" for end in ("_total", "_bucket")))}
    document = yaml.safe_load(RULES.read_text())
    assert (document["apiVersion"], document["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
    rules = [rule for group in document["spec"]["groups"] for rule in group["rules"]]
    watched: set[str] = set()
    for rule in rules:
        named = set(re.findall(r"kubegems_[a-z_]+", rule["expr"]))
        assert named, rule["alert"]
        assert named <= known, f"{rule['alert']}: {named - known} is not measured"
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["description"]
        watched |= named
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for figure in ("dead", "oldest_seconds", "attempts_total", "claim_lag_seconds_bucket"):
        assert f"kubegems_jobs_{figure}" in watched
