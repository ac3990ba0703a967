"""Reconcile: make what is equal to what is wanted, again and again, a key at a time.

A `Loop` calls `reconcile(key)` with at most one worker per key: keys that are added while waiting merge into one run,
failures come back with growing, jittered delays, and two runs of a key keep a distance, so that no event storm becomes
a write storm. `Election` lets one of several processes work, by a coordination Lease. `keys` maps what changed to the
keys it concerns; `conditions` keeps status conditions and their times; all is counted. The function gets a key, never an
event: what happened is not what is. It refuses unbounded runs (each has a deadline) and hidden state between runs.
"""

from __future__ import annotations

from libs.reconcile.conditions import Condition, merged
from libs.reconcile.election import Election
from libs.reconcile.loop import Loop
from libs.reconcile.queue import Backoff, KeyedQueue
from libs.reconcile.result import DONE, Again, Done, Result

__all__ = ["DONE", "Again", "Backoff", "Condition", "Done", "Election", "KeyedQueue", "Loop", "Result", "merged"]
