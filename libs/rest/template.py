"""Path templates of google.api.http, and the tree that finds a path's binding."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

B = TypeVar("B")
ONE, MANY = "*", "**"
_TOKEN = re.compile(r"\{([a-z0-9_.]+)(?:=([^{}]+))?\}|([^/{}]+)")


@dataclass(frozen=True, slots=True)
class Variable:
    """A field that takes segments `start` to `end` (not included; None for all that is left) of a path."""

    path: str
    start: int
    end: int | None


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed template: its segments, its verb without the colon, and its variables."""

    segments: tuple[str, ...]
    verb: str
    variables: tuple[Variable, ...]


def parse(text: str) -> Template:
    """Parses `/a/{name=b/*}/c:verb`; ValueError when it is none."""
    if not text.startswith("/"):
        raise ValueError(f"{text!r} must start with a slash")
    body, verb = _verb(text[1:])
    segments: list[str] = []
    variables: list[Variable] = []
    position = 0
    while position < len(body):
        token = _TOKEN.match(body, position)
        if token is None or (token.end() < len(body) and body[token.end()] != "/"):
            raise ValueError(f"{text!r} is no path template")
        path, pattern, literal = token.groups()
        added = [literal] if literal else (pattern or ONE).split("/")
        if path:
            variables.append(Variable(path, len(segments), None if MANY in added else len(segments) + len(added)))
        segments += added
        position = token.end() + 1
    if MANY in segments[:-1]:
        raise ValueError(f"{text!r}: ** must be the last segment")
    return Template(tuple(segments), verb, tuple(variables))


def _verb(body: str) -> tuple[str, str]:
    """A verb stands behind the last slash and outside of braces."""
    colon = body.rfind(":")
    if colon > max(body.rfind("/"), body.rfind("}")):
        return body[:colon], body[colon + 1 :]
    return body, ""


@dataclass(slots=True)
class _Node(Generic[B]):
    literals: dict[str, _Node[B]] = field(default_factory=dict)
    one: _Node[B] | None = None
    ends: dict[str, dict[str, B]] = field(default_factory=dict)  # verb → HTTP method → binding
    rest: dict[str, dict[str, B]] = field(default_factory=dict)  # the same behind `**`


class Routes(Generic[B]):
    """Finds bindings by path: literals win over `*`, `*` over `**`, a verb over a segment with a colon in it."""

    def __init__(self) -> None:
        self._root: _Node[B] = _Node()

    def add(self, http_method: str, template: Template, binding: B) -> None:
        """Adds a binding; ValueError when the place is taken."""
        node = self._root
        ends = None
        for segment in template.segments:
            if segment == MANY:
                ends = node.rest
            elif segment == ONE:
                node.one = node.one or _Node()
                node = node.one
            else:
                node = node.literals.setdefault(segment, _Node())
        places = (node.ends if ends is None else ends).setdefault(template.verb, {})
        if http_method in places:
            raise ValueError(f"{http_method} /{'/'.join(template.segments)}:{template.verb} is bound twice")
        places[http_method] = binding

    def find(self, segments: list[str]) -> dict[str, tuple[B, list[str]]]:
        """HTTP method → binding and the segments without the verb, for a path's segments; empty when nothing is there."""
        found: dict[str, tuple[B, list[str]]] = {}
        last, colon, verb = segments[-1].rpartition(":")
        if colon and last:
            bare = [*segments[:-1], last]
            for places in self._places(self._root, bare, 0, verb):
                for http_method, binding in places.items():
                    found.setdefault(http_method, (binding, bare))
        for places in self._places(self._root, segments, 0, ""):
            for http_method, binding in places.items():
                found.setdefault(http_method, (binding, segments))
        return found

    def _places(self, node: _Node[B], segments: list[str], at: int, verb: str) -> Iterator[dict[str, B]]:
        if at == len(segments):
            if verb in node.ends:
                yield node.ends[verb]
            if verb in node.rest:  # `**` takes no segment, too
                yield node.rest[verb]
            return
        literal = node.literals.get(segments[at])
        if literal is not None:
            yield from self._places(literal, segments, at + 1, verb)
        if node.one is not None and segments[at]:
            yield from self._places(node.one, segments, at + 1, verb)
        if verb in node.rest:
            yield node.rest[verb]
