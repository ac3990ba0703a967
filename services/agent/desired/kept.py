"""Kept: what the agent remembers of desired state across restarts, in its state folder."""

from __future__ import annotations

import contextlib
import os
import shutil
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

    Each cluster uid has a folder in `root`: joining again gives another uid, but does not forget which hub was followed.
    `on_change` is called after each write. One that cannot be read is a ValueError: to forget in silence which hub and
    generation were followed is not safe.

    Attributes:
        earlier_hubs: uids of the hubs that were followed under other cluster uids; none once a set was taken under this one.
    """

    def __init__(self, root: Path, cluster_uid: str, on_change: Callable[[], None] | None = None) -> None:
        self._on_change = on_change or (lambda: None)
        self._folder = folder = root / cluster_uid
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._set_file = folder / "desired.bin"
        self._progress_file = folder / "desired.json"
        self.progress = Progress()
        self.set = _read(folder)
        self.earlier_hubs = frozenset(found.hub_uid for other in self._others() if (found := _read(other)) is not None)
        try:
            with contextlib.suppress(FileNotFoundError):
                self.progress = Progress(**orjson.loads(self._progress_file.read_bytes()))
        except (ValueError, TypeError) as error:
            raise _broken(folder) from error

    def take(self, message: wire.FetchDesiredStateResponse) -> DesiredSet:
        """Keeps a set as the one to apply; what was remembered under other cluster uids goes."""
        if self.set is not None and self.set.hub_uid != message.hub_uid:
            self.note(applied_generation=0, applied_checksum="")  # another hub's numbers mean nothing
        _write(self._set_file, message.SerializeToString())
        self.set = parse(message)
        for other in self._others():
            shutil.rmtree(other, ignore_errors=True)
        self.earlier_hubs = frozenset()
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

    def _others(self) -> list[Path]:
        return [found for found in self._folder.parent.iterdir() if found.is_dir() and found != self._folder]


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


def _read(folder: Path) -> DesiredSet | None:
    """The set in a folder; None when it has none."""
    try:
        return parse(wire.FetchDesiredStateResponse.FromString((folder / "desired.bin").read_bytes()))
    except FileNotFoundError:
        return None
    except (DecodeError, ValueError, TypeError) as error:
        raise _broken(folder) from error


def _broken(folder: Path) -> ValueError:
    return ValueError(f"{folder} holds a broken set; remove the folder to follow the hub from scratch")


def _write(file: Path, content: bytes) -> None:
    temporary = file.with_name(file.name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(file)
