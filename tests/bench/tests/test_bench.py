"""The bench itself: what it measures with must run, end, and count what it says; figures are no matter of tests."""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from tests.bench import __main__ as bench
from tests.bench import rest_vs_envoy
from tests.bench.envoy import cases, figures
from tests.bench.envoy.server import Setting
from tests.bench.envoy.sides import Cost, Side, server


def test_names_choose_scripts_and_their_bars() -> None:
    """Nothing named is everything; a start of a name is all that start so; unknown ones are refused."""
    assert [Path(command[1]) for command in bench.commands([])] == bench.scripts()
    assert [Path(command[1]).name for command in bench.commands(["rest"])] == ["rest_vs_envoy.py", "rest_vs_grpc.py"]
    assert [command[2:] for command in bench.commands(["rest_vs_envoy:blob:sse"])] == [["blob", "sse"]]
    with pytest.raises(ValueError, match="nonsense is none of"):
        list(bench.commands(["nonsense"]))


def test_what_takes_too_long_ends_with_all_that_it_started(tmp_path: Path) -> None:
    """A script that hangs is interrupted, and so is a program of its that does not listen."""
    told = tmp_path / "pid"
    child = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(600)"
    script = f"import subprocess, sys; c = subprocess.Popen([sys.executable, '-c', {child!r}]); "
    script += f"open({str(told)!r}, 'w').write(str(c.pid)); c.wait()"
    assert bench.run([sys.executable, "-c", script], seconds=2) == 1
    deadline = time.monotonic() + 10
    while _runs(int(told.read_text())):
        assert time.monotonic() < deadline, "the child still runs"
        os.sched_yield()


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("name", ["small_get", "list_500", "blob", "sse_batched"])
async def test_a_round_counts_what_was_answered(name: str, tmp_path: Path) -> None:
    """Our side answers each case, all of it, and its CPU time is that of the answers."""
    case = replace(cases.BY_NAME[name], times=2, lanes=2)
    async with AsyncExitStack() as stack:
        made = rest_vs_envoy.Bench(tmp_path, stack, rest_vs_envoy.Options(rounds=1))
        port, process = await stack.enter_async_context(server(Setting(str(tmp_path), "rest")))
        cost = await Side(port, process, None).round(case, made.requests(case, case.path), None)
    assert cost.cpu > 0
    assert cost.backend_cpu == cost.cpu
    assert cost.rate > 0
    assert 0 < cost.p50 <= cost.p99


def test_a_bar_is_the_median_of_the_pairs_ratios() -> None:
    """A round that was disturbed on one side does not decide."""
    pairs = [(Cost(1, 1, 300, 1, 2), Cost(2, 1, 100, 3, 4)), (Cost(1, 1, 200, 1, 2), Cost(4, 1, 100, 3, 4))]
    pairs.append((Cost(9, 1, 1, 1, 2), Cost(4, 1, 100, 3, 4)))
    rate, cpu = figures.lines(cases.BY_NAME["small_get"], pairs)
    assert (rate["bar"], rate["ratio"], rate["goal"], rate["better"], rate["samples"]) == ("small_get_rps", 2.0, 1.5, "higher", 3)
    assert (cpu["bar"], cpu["ratio"], cpu["goal"], cpu["better"]) == ("small_get_cpu", 0.5, 0.5, "lower")
    assert json.dumps(rate)
    assert figures.row(cases.BY_NAME["small_get"], pairs).count("|") == figures.HEADING.splitlines()[0].count("|")


def test_the_encoder_says_what_protobuf_says() -> None:
    """The bar of the encoder compares before it measures."""
    assert rest_vs_envoy.encoder(1)["samples"] == 1
