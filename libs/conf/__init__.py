"""Configuration: read once, strictly, into a frozen dataclass whose field texts are its documentation.

`load(Config, "gateway")` reads `KUBEGEMS_GATEWAY_<FIELD>` variables over a YAML file (`KUBEGEMS_GATEWAY_CONFIG` or
`--config`), same names in lower case. An unknown name, a wrong type or a missing value refuses to start, and all
mistakes are told at once. Secrets are file paths (fields ending in `_file`), so nothing printed here is secret.
`--print-config` shows the effective values with their texts. It refuses nested settings and reloading.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args, get_type_hints

import yaml

C = TypeVar("C")


class ConfigError(Exception):
    """The configuration is wrong; the message has one line per mistake."""


def doc(text: str, *, default: Any = dataclasses.MISSING) -> Any:
    """Documents a field; without a default it must be given."""
    metadata = {"doc": text}
    if default is dataclasses.MISSING:
        return dataclasses.field(metadata=metadata)
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def load(cls: type[C], service: str, argv: Sequence[str] | None = None, env: Mapping[str, str] | None = None) -> C:
    """Reads the configuration of `service`; prints it and exits when `--print-config` is given."""
    parser = argparse.ArgumentParser(prog=f"python -m services.{service}", description=(cls.__doc__ or "").splitlines()[0])
    parser.add_argument("--config", help="YAML file with the settings (variables win over it)")
    parser.add_argument("--print-config", action="store_true", help="show the effective settings with their texts, and exit")
    args = parser.parse_args(argv)
    try:
        config = read(cls, service, os.environ if env is None else env, args.config)
    except ConfigError as error:
        print(error, file=sys.stderr)  # noqa: T201 -- there is no log yet
        raise SystemExit(2) from error
    if args.print_config:
        print(render(config))  # noqa: T201 -- the answer that was asked for
        raise SystemExit(0)
    return config


def read(cls: type[C], service: str, env: Mapping[str, str], path: str | None = None) -> C:
    """Reads the configuration without touching the process; raises ConfigError."""
    prefix = f"KUBEGEMS_{service.upper()}_"
    path = path or env.get(prefix + "CONFIG")
    given: dict[str, Any] = _yaml(Path(path)) if path else {}
    given |= {name[len(prefix) :].lower(): value for name, value in env.items() if name.startswith(prefix) and name != prefix + "CONFIG"}
    hints = get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type] # a dataclass by contract
    problems = [f"{prefix}{name.upper()}: no such setting" for name in given if name not in fields]
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name in given:
            try:
                values[name] = _typed(given[name], hints[name])
            except ValueError as error:
                problems.append(f"{prefix}{name.upper()}={given[name]!r}: {error}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            problems.append(f"{prefix}{name.upper()} is missing: {field.metadata.get('doc', '')}")
    if problems:
        raise ConfigError("\n".join(problems))
    return cls(**values)


def render(config: Any) -> str:
    """The effective values as YAML, each under its text."""
    lines = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        lines += [f"# {field.metadata.get('doc', '')}", f"{field.name}: {_plain(value)}"]
    return "\n".join(lines)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return "[" + ", ".join(str(v) for v in value) + "]"
    return "" if value is None else value


def _yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text()) or {}
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must hold `name: value` lines")
    return content


def _typed(raw: Any, hint: Any) -> Any:
    options = [a for a in get_args(hint) if a is not NoneType] if NoneType in get_args(hint) else [hint]
    kind = options[0]
    if raw in ("", None) and NoneType in get_args(hint):
        return None
    if kind is bool:
        if str(raw).lower() not in ("true", "false", "1", "0"):
            raise ValueError("must be true or false")
        return str(raw).lower() in ("true", "1")
    if kind in (int, float):
        return kind(raw)
    if kind is Path:
        return Path(str(raw))
    if getattr(kind, "__origin__", None) is tuple:
        items = raw.split(",") if isinstance(raw, str) else raw
        return tuple(str(item).strip() for item in items if str(item).strip())
    return str(raw)
