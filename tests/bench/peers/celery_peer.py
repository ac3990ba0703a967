"""celery (redis, prefork, one child, acks_late) as a peer in a venv of its own: `enqueue N`, or the worker's app."""

import os
import sys
import time

from celery import Celery

app = Celery("peer", broker=f"redis://127.0.0.1:{os.environ['PEER_REDIS']}/1")
app.conf.update(task_acks_late=True, worker_prefetch_multiplier=100, task_ignore_result=True)
_SEEN = {"count": 0, "first": 0.0}
_WANTED = int(os.environ.get("PEER_JOBS", "0"))


@app.task(name="noop")  # else it is named after the module, which is `__main__` where it is enqueued
def noop(_number: int) -> None:
    """Counts; the last one tells how long all took."""
    _SEEN["first"] = _SEEN["first"] or time.perf_counter()
    _SEEN["count"] += 1
    if _SEEN["count"] == _WANTED:
        sys.__stdout__.write(f"SECONDS {time.perf_counter() - _SEEN['first']}\n")
        sys.__stdout__.flush()


if __name__ == "__main__":
    for number in range(int(sys.argv[1])):
        noop.delay(number)
