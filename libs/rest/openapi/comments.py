"""What stands above each name in the protos; generated with the code (`make gen`)."""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Mapping

import orjson

Comments = Mapping[str, str]
_EXAMPLE = re.compile(r"(?:such as|for example|e\.g\.) `([^`]+)`")
_NAME = re.compile(r"`([a-zA-Z]+(?:/(?:[a-zA-Z]+|\{[a-z_A-Z]+\}))+)`")
_SENTENCE = re.compile(r"^(.{1,119}?[.:;])(?:\s|$)")
_PLACE = re.compile(r"\{([a-zA-Z_]+)\}")


def load() -> dict[str, str]:
    """Comments by full name."""
    found: dict[str, str] = orjson.loads(importlib.resources.files("kubegems").joinpath("comments.json").read_bytes())
    return found


def summary(comment: str) -> str:
    """The first sentence, without its full stop."""
    match = _SENTENCE.match(comment)
    return (match[1] if match else comment[:119]).rstrip(".:;")


def example(comment: str, placeholders: Mapping[str, str]) -> str | None:
    """A value that the comment gives: `such as `x``, or a resource name whose places are filled."""
    if match := _EXAMPLE.search(comment):
        return _filled(match[1], placeholders)
    if match := _NAME.search(comment):
        return _filled(match[1], placeholders)
    return None


def _filled(text: str, placeholders: Mapping[str, str]) -> str:
    return _PLACE.sub(lambda match: placeholders.get(match[1], match[1]), text)
