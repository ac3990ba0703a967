"""Every stream and its limits."""

from __future__ import annotations

from dataclasses import dataclass

from nats.js.api import DiscardPolicy, PersistMode, RetentionPolicy, StorageType, StreamConfig

from libs.bus import subjects

MIB = 1024 * 1024
HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Stream:
    """A stream.

    Attributes:
        name: upper case.
        subjects: what it keeps.
        max_bytes: most bytes.
        max_age: seconds that a message lives; 0 for ever.
        work_queue: a message goes when it is acknowledged, and a full stream refuses new ones.
        refuse_when_full: a full stream refuses new messages instead of forgetting old ones.
        healed: what is lost in a crash of the broker is healed elsewhere, so that no fsync is awaited.
        duplicate_window: seconds in which a repeated message id is recognised.
        max_message: most bytes of a message.
        bucket: a key-value bucket: of each subject the newest message alone is kept, in memory.
    """

    name: str
    subjects: tuple[str, ...]
    max_bytes: int
    max_age: float
    work_queue: bool = False
    refuse_when_full: bool = False
    healed: bool = False
    duplicate_window: float = 120.0
    max_message: int = MIB
    bucket: bool = False

    def config(self) -> StreamConfig:
        """As the client wants it."""
        return StreamConfig(
            name=self.name,
            subjects=list(self.subjects),
            retention=RetentionPolicy.WORK_QUEUE if self.work_queue else RetentionPolicy.LIMITS,
            discard=DiscardPolicy.NEW if self.work_queue or self.refuse_when_full else DiscardPolicy.OLD,
            max_bytes=self.max_bytes,
            max_age=self.max_age,
            max_msg_size=self.max_message,
            max_msgs_per_subject=1 if self.bucket else -1,
            storage=StorageType.MEMORY if self.bucket else StorageType.FILE,
            duplicate_window=min(self.duplicate_window, self.max_age or self.duplicate_window),
            allow_direct=True,
            persist_mode=PersistMode.ASYNC if self.healed else None,
        )


# The relay may publish a row again after a crash: an hour of memory outlives any restart of ours.
PLATFORM = Stream("PLATFORM", ("gems.platform.>",), 256 * MIB, 72 * HOUR, duplicate_window=HOUR)
NOTICES = Stream("NOTICES", ("gems.notice.>",), 128 * MIB, 24 * HOUR, duplicate_window=HOUR)
JOBS = Stream("JOBS", ("gems.jobs.>",), 64 * MIB, 0, work_queue=True, healed=True, max_message=64 * 1024)
HUB = (PLATFORM, NOTICES, JOBS)
# Presence alone: whoever holds a tunnel says so again when the broker has forgotten.
TUNNELS = Stream("KV_TUNNELS", ("$KV.TUNNELS.>",), 64 * MIB, 2 * HOUR, max_message=4096, bucket=True)
CLUSTER_PREFIX = "CLUSTER_"


def cluster(uid: str) -> Stream:
    """What one cluster publishes: bounded by itself, so that none can push out another's."""
    return Stream(CLUSTER_PREFIX + subjects.token(uid), (subjects.cluster(uid),), 64 * MIB, HOUR, healed=True, max_message=256 * 1024)
