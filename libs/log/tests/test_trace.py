"""Trace context where nothing is exported: made, carried and nested as where it is."""

from __future__ import annotations

import pytest
from opentelemetry import trace as otel
from opentelemetry.sdk.trace import TracerProvider

from libs.log import trace

_FAR = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(params=[False, True], ids=["carried", "exported"], autouse=True)
def exports(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways must look alike from within."""
    if not isinstance(otel.get_tracer_provider(), TracerProvider):
        trace.setup("test", endpoint=None)
    monkeypatch.setattr(trace, "_exports", request.param)


def test_a_span_is_its_parents_child() -> None:
    """Same trace, another span id; outside there is none."""
    with trace.span("outer"):
        outer, of = trace.traceparent(), trace.current_trace_id()
        with trace.span("inner"):
            assert trace.current_trace_id() == of
            assert trace.traceparent() != outer
        assert trace.traceparent() == outer
    assert (trace.traceparent(), trace.current_trace_id()) == ("", "")


def test_a_trusted_caller_is_followed_and_an_untrusted_one_is_not() -> None:
    """`parent` gives the trace id; `link` does not."""
    with trace.span("served", parent=_FAR):
        assert trace.current_trace_id() == _FAR[3:35]
        assert trace.traceparent().startswith(_FAR[:36])
        assert trace.traceparent() != _FAR
    with trace.span("served", link=_FAR):
        assert trace.current_trace_id() != _FAR[3:35]


@pytest.mark.parametrize("sampled", [0, 1])
def test_whether_a_trace_is_sampled_is_its_beginners_choice(sampled: int) -> None:
    """Who is called must not export a trace that the caller left out, nor leave out one that it exports."""
    with trace.span("served", parent=f"{_FAR[:-2]}0{sampled}"), trace.span("inner"):
        assert int(trace.traceparent()[-2:], 16) & 1 == sampled
    with trace.span("begun"):
        assert int(trace.traceparent()[-2:], 16) & 1


@pytest.mark.parametrize("parent", ["", "nonsense", "00-" + "0" * 32 + "-b7ad6b7169203331-01", _FAR.upper()])
def test_a_malformed_parent_starts_a_trace(parent: str) -> None:
    """Never an error, never an invalid id."""
    with trace.span("served", parent=parent):
        assert len(trace.current_trace_id()) == 32
        assert trace.current_trace_id() != "0" * 32


def test_a_span_ends_with_its_block_when_that_fails() -> None:
    """The context before it is back."""

    def broken() -> None:
        with trace.span("served"):
            raise ValueError("planted")

    with pytest.raises(ValueError, match="planted"):
        broken()
    assert trace.traceparent() == ""
