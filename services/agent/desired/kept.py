"""Kept: what the agent remembers of desired state across restarts, in its state folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import orjson
from google.protobuf.message import DecodeError

from kubegems.agent.v1 import desired_state_service_pb2 as wire
from services.agent.desired.domain import Buried, DesiredSet, Wanted


@dataclass(frozen=True, slots=True)
class Progress:
    """How far applying has come.

    Attributes:
        applied_generation, applied_checksum: the last set that was applied whole.
        refused_confirmed: the confirmed generation when a lower one was first refused; None when none is.
        paused: the hub wants nothing to be done here for now.
    """

    applied_generation: int = 0
    applied_checksum: str = ""
    refused_confirmed: int | None = None
    paused: bool = False


class Kept:
    """The last set taken, and the progress; both survive a restart. Files are written whole or not at all.

    `on_change` is called after each write. One that cannot be read is a ValueError: to forget in silence which hub and
    generation were followed is not safe.
    """

    def __init__(self, folder: Path, on_change: Callable[[], None] | None = None) -> None:
        self._on_change = on_change or (lambda: None)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._set_file = folder / "desired.bin"
        self._progress_file = folder / "desired.json"
        self.progress = Progress()
        self.set: DesiredSet | None = None
        try:
            with contextlib.suppress(FileNotFoundError):
                self.set = parse(wire.FetchDesiredStateResponse.FromString(self._set_file.read_bytes()))
            with contextlib.suppress(FileNotFoundError):
                self.progress = Progress(**orjson.loads(self._progress_file.read_bytes()))
        except (DecodeError, ValueError, TypeError) as error:
            raise ValueError(f"{folder} holds a broken set; remove the folder to follow the hub from scratch") from error

    def take(self, message: wire.FetchDesiredStateResponse) -> DesiredSet:
        """Keeps a set as the one to apply."""
        _write(self._set_file, message.SerializeToString())
        self.set = parse(message)
        self._on_change()
        self.note(refused_confirmed=None, paused=message.paused)
        return self.set

    def note(self, **changes: int | str | bool | None) -> None:
        """Keeps progress."""
        new = replace(self.progress, **changes)  # type: ignore[arg-type] # names and types are Progress's own
        if new != self.progress:
            self.progress = new
            _write(self._progress_file, orjson.dumps(asdict(new)))
            self._on_change()


def parse(message: wire.FetchDesiredStateResponse) -> DesiredSet:
    """A set from the wire; an object whose manifest is no JSON is told as ValueError."""
    return DesiredSet(
        hub_uid=message.hub_uid,
        generation=message.generation,
        checksum=message.checksum,
        wanted=tuple(
            Wanted(o.kind, o.name, o.uid, o.generation, orjson.loads(o.manifest or b"{}"), o.traceparent) for o in message.objects
        ),
        buried=tuple(Buried(t.kind, t.name, t.uid, t.generation, t.traceparent) for t in message.tombstones),
        confirmed=message.confirmed_generation,
        paused=message.paused,
    )


def _write(file: Path, content: bytes) -> None:
    temporary = file.with_name(file.name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(file)
