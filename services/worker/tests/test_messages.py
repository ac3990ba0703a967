"""Jobs as users see them."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

import pytest

from kubegems.jobs.v1 import job_pb2
from libs.jobs import Job, State
from libs.jobs.steps import Row
from services.worker import messages


def _job(state: State) -> Job:
    now = datetime.now(UTC)
    given: dict[str, Any] = dict.fromkeys(Job._fields, "") | dict.fromkeys(
        ("percent", "attempts", "max_attempts", "priority", "fence", "cancel"), 0
    )
    given |= {"id": uuid.uuid4(), "state": state, "arguments": {}, "log": [], "result": None, "replay_of": None}
    return Job(**given | {"run_time": now, "create_time": now, "start_time": now, "end_time": None})


@pytest.mark.parametrize("state", list(State))
def test_a_step_that_was_cut_short_is_where_its_job_is(state: State) -> None:
    """Nobody writes its end when its worker dies or its job is cancelled; it is not shown as running for ever."""
    steps = [Row(name, name, 1, None, "", None, None) for name in ("SUCCEEDED", "RUNNING", "QUEUED")]
    shown = messages.job(_job(state), steps_=steps)
    assert [job_pb2.Job.State.Name(step.state) for step in shown.steps] == ["SUCCEEDED", state.value, "QUEUED"]
