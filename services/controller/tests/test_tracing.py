"""The trace of a change is followed by the first run of its generation, and by no other."""

from __future__ import annotations

from typing import Any

from libs.kube.resources import ENVIRONMENTS
from libs.log import trace
from services.controller.domain import TRACEPARENT
from services.controller.tests import objects
from services.controller.tracing import Traces

TRACE = "0af7651916cd43dd8448eb211c80319c"


def changed(generation: int, *, observed: int = 0) -> dict[str, Any]:
    found = objects.environment(annotations={TRACEPARENT: f"00-{TRACE}-b7ad6b7169203331-01"})
    found["metadata"]["generation"] = generation
    return {**found, "status": {"observedGeneration": observed}}


def followed(traces: Traces, found: dict[str, Any]) -> bool:
    with traces.span(ENVIRONMENTS, found):
        return trace.current_trace_id() == TRACE


def test_only_the_first_run_of_a_generation_follows_the_change() -> None:
    """Later runs, such as drift repairs, are stories of their own; the next generation is followed again."""
    traces = Traces()
    assert [followed(traces, changed(1)), followed(traces, changed(1)), followed(traces, changed(2))] == [True, False, True]


def test_a_generation_that_was_reported_before_a_restart_is_not_followed_again() -> None:
    """The status remembers what the process does not."""
    assert not followed(Traces(), changed(3, observed=3))
    assert followed(Traces(), changed(4, observed=3))


def test_an_object_without_a_trace_is_no_trouble() -> None:
    """The annotation is optional."""
    assert not followed(Traces(), objects.environment())
