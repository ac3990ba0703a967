"""Pairs of rounds → one JSON line per bar, or a row of a Markdown table."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from tests.bench.envoy.cases import Case
from tests.bench.envoy.sides import Cost

Pairs = list[tuple[Cost, Cost]]
HEADING = """| what | a second, ours / Envoy's | ratio | CPU, ours / Envoy's, ms | ratio (spread) | p50/p99, ours : Envoy's, ms | goals |
|---|---|---|---|---|---|---|"""


def figure(bar: str, ratio: float, goal: float | None, better: str, *, what: str, samples: int) -> dict[str, Any]:
    """A line."""
    return {"bar": bar, "ratio": round(ratio, 3), "goal": goal, "better": better, "samples": samples, "what": what}


def median(found: Pairs, of: Callable[[Cost], float]) -> tuple[float, float, float]:
    """Of the pairs' ratios, of our values, of theirs."""
    pairs = [(of(a), of(b)) for a, b in found]
    return statistics.median(a / b for a, b in pairs), statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)


def lines(case: Case, found: Pairs) -> list[dict[str, Any]]:
    """The bars of a case: how much it answers, and what of CPU it takes."""
    gates, unit = dict(case.gates), "event" if case.units > 1 else "request"
    rate, cpu, p50, p99 = _medians(found)
    backend = statistics.median(b.backend_cpu for _, b in found)
    told = f"{case.what}: {rate[1]:.0f} / {rate[2]:.0f} {unit}s/s, p50 {p50[1]:.1f} / {p50[2]:.1f} ms, p99 {p99[1]:.1f} / {p99[2]:.1f} ms"
    spent = f"{case.what}: CPU {cpu[1]:.4f} / {cpu[2]:.4f} ms (backend {backend:.4f} + Envoy {cpu[2] - backend:.4f}) per {unit}"
    return [
        figure(f"{case.name}_rps", rate[0], gates.get("rps"), "higher", what=told, samples=len(found)),
        figure(f"{case.name}_cpu", cpu[0], gates.get("cpu"), "lower", what=spent, samples=len(found)),
    ]


def row(case: Case, found: Pairs) -> str:
    """A row below HEADING."""
    rate, cpu, p50, p99 = _medians(found)
    spread = sorted(a.cpu / b.cpu for a, b in found)
    goals = ", ".join(f"{name} {'≥' if name == 'rps' else '≤'} {goal:g}" for name, goal in case.gates) or "–"
    micro = case.units > 1
    ours, theirs = (f"{v * (1000 if micro else 1):.{1 if micro else 3}f}" for v in cpu[1:])
    return (
        f"| {case.what} | {rate[1]:,.0f} / {rate[2]:,.0f} | **{rate[0]:.2f}** | {ours} / {theirs}{' µs' if micro else ''} |"
        f" **{cpu[0]:.2f}** ({spread[0]:.2f}–{spread[-1]:.2f}) | {p50[1]:.1f}/{p99[1]:.1f} : {p50[2]:.1f}/{p99[2]:.1f} | {goals} |"
    )


def batching(found: Pairs) -> dict[str, Any]:
    """Our stream in batches against one write per event."""
    rate, cpu = median(found, lambda c: c.rate), median(found, lambda c: c.cpu)
    told = f"SSE batched / one write per event: {rate[1]:.0f} / {rate[2]:.0f} events/s, CPU {cpu[1] * 1000:.1f} / {cpu[2] * 1000:.1f} µs"
    return figure("sse_batching", rate[0], 6.0, "higher", what=told, samples=len(found))


def _medians(found: Pairs) -> list[tuple[float, float, float]]:
    return [median(found, lambda c, n=name: getattr(c, n)) for name in ("rate", "cpu", "p50", "p99")]  # type: ignore[misc] # mypy cannot infer a lambda with a default
