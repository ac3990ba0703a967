"""A request's path and query, parsed once and strictly: what is authorised is what was parsed."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, unquote

from libs.faults import Invalid

_PLAIN = re.compile(r"[A-Za-z0-9._~:@!$&'()*+,;=-]+")
_BAD = re.compile(r"[\x00-\x1f\x7f/\\]")
_HALF = re.compile(r"%(?![0-9A-Fa-f]{2})")
_MAX_PARAMETERS = 256


def split(target: str) -> tuple[list[str], list[tuple[str, str]]]:
    """Segments and query pairs of `/a/b?c=d`, decoded.

    Raises:
        Invalid: for empty or dot segments, encoded slashes, backslashes, control characters and broken encodings.
    """
    path, _, query = target.partition("?")
    if not path.startswith("/") or "#" in target:
        raise Invalid("the path must start with a slash and hold no fragment")
    return [_segment(raw) for raw in path[1:].split("/")], _pairs(query) if query else []


def _segment(raw: str) -> str:
    if raw in ("", ".", ".."):
        raise Invalid("the path holds an empty or dotted segment")
    if _PLAIN.fullmatch(raw):
        return raw
    segment = _unquoted(raw)
    if _BAD.search(segment) or segment in (".", ".."):
        raise Invalid("the path holds an encoded slash, backslash, dot segment or control character")
    return segment


def _unquoted(raw: str) -> str:
    if _HALF.search(raw):
        raise Invalid("the path is not encoded correctly")
    try:
        return unquote(raw, errors="strict")
    except UnicodeDecodeError as error:
        raise Invalid("the path is no UTF-8") from error


def _pairs(query: str) -> list[tuple[str, str]]:
    if _HALF.search(query):
        raise Invalid("the query is not encoded correctly")
    try:
        return parse_qsl(query, keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=_MAX_PARAMETERS)
    except ValueError as error:
        raise Invalid("the query is not encoded correctly, or has too many parameters") from error
