"""The alert rules that are shipped watch figures that exist."""

from __future__ import annotations

import pytest
from prometheus_client import REGISTRY

from libs.jobs import metrics
from services.worker import platform_jobs
from tests.kit import alerts


def test_each_alert_watches_a_figure_that_is_measured() -> None:
    """Prometheus would take each expression; every metric in it is registered, with the labels it reads; every rule says what to do."""
    assert metrics.CLAIMS is not None
    assert platform_jobs.WARN
    known: dict[str, set[str]] = {}
    for family in REGISTRY.collect():
        labels = set(getattr(REGISTRY._names_to_collectors.get(family.name), "_labelnames", ()))
        known |= {family.name: labels, f"{family.name}_total": labels, f"{family.name}_bucket": labels | {"le"}}
    watched: set[str] = set()
    for rule in alerts.rules():
        read = alerts.selectors(rule["expr"])
        assert read, rule["alert"]
        for metric, labels in read.items():
            assert metric in known, f"{rule['alert']}: {metric} is not measured"
            assert labels <= known[metric], f"{rule['alert']}: {metric} has no {labels - known[metric]}"
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["description"]
        watched |= set(read)
    assert len({rule["alert"] for rule in alerts.rules()}) == len(alerts.rules())
    for figure in ("dead", "oldest_seconds", "attempts_total", "claim_lag_seconds_bucket"):
        assert f"kubegems_jobs_{figure}" in watched


def test_an_expression_that_prometheus_would_refuse_is_refused() -> None:
    """The check above can fail: types, functions and brackets are looked at, labels are read."""
    for wrong in ("sum by (", "rate(kubegems_jobs_dead)", "nonsense(kubegems_jobs_dead)"):
        with pytest.raises(ValueError, match=r"."):
            alerts.selectors(wrong)
    assert alerts.selectors('sum by (a) (rate(x{b!="c"}[5m])) > y') == {"x": {"a", "b"}, "y": {"a"}}
