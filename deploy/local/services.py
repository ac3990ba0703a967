"""Our services as parts: what each is told is looked up by the names its own configuration declares."""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from deploy.local.errors import LocalError
from deploy.local.part import Part
from deploy.local.process import Command, base_env

ROOT = Path(__file__).parents[2]
_HANDED_ON = ("OTEL_EXPORTER_OTLP_ENDPOINT", "KUBEGEMS_LOG_LEVEL")


def part(
    name: str,
    facts: Mapping[str, object],
    log: Path,
    ready: Callable[[], Awaitable[None]],
    env: Mapping[str, str] | None = None,
    *,
    within: float = 60,
) -> Part:
    """A service as a part.

    Args:
        name: such as `gateway`.
        facts: what the starter knows, by the names of settings; those that the service declares are told.
        log: its log file.
        ready: returns once it serves.
        env: variables besides its settings.
        within: seconds from start to ready.
    """
    told = settings(name, facts)

    def command() -> Command:
        variables = base_env() | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'gen'}", "PYTHONUNBUFFERED": "1"}
        variables |= {key: os.environ[key] for key in _HANDED_ON if key in os.environ} | dict(env or {}) | told
        return Command((sys.executable, "-m", f"services.{name}"), log, env=variables)

    return Part(name, command, ready, within=within)


def settings(name: str, facts: Mapping[str, object]) -> dict[str, str]:
    """The variables of a service; raises LocalError when it must be told something that we do not know."""
    config = importlib.import_module(f"services.{name}.config").Config
    prefix = f"KUBEGEMS_{name.upper()}_"
    told = given(prefix)
    missing = []
    for field in dataclasses.fields(config):
        key = prefix + field.name.upper()
        if key in told:
            continue
        if field.name in facts:
            told[key] = str(facts[field.name])
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            missing.append(key)
    if missing:
        raise LocalError(f"the local stack does not know what to tell the {name}: set {', '.join(missing)}")
    return told


def given(prefix: str) -> dict[str, str]:
    """Settings that the caller's environment overrides."""
    return {key: value for key, value in os.environ.items() if key.startswith(prefix)}
