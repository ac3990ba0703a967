"""Path templates as OpenAPI paths: each star becomes a parameter named by what stands before it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from libs.rest.binding import Binding, field_at
from libs.rest.openapi.fields import Json, anchored
from libs.rest.template import MANY, ONE, Template, Variable
from libs.rpc import fields

_SEGMENT = "^[^/]+$"
_UUID = "01890a5d-ac96-774b-bcce-b302099a8057"
_ENDINGS = (("ies", "y"), ("sses", "ss"), ("xes", "x"), ("ches", "ch"), ("uses", "us"), ("s", ""))


def path(binding: Binding, placeholders: Mapping[str, str]) -> tuple[str, list[Json]]:
    """The path and its parameters, in order.

    Args:
        binding: whose template it is.
        placeholders: an example by parameter.
    """
    template = binding.template
    parts: list[str] = []
    parameters: list[Json] = []
    for at, segment in enumerate(template.segments):
        if segment not in (ONE, MANY):
            parts.append(segment)
            continue
        name = _unique(_name(template, at), [p["name"] for p in parameters])
        parts.append(f"{{{name}}}")
        parameters.append(_parameter(name, binding, at, placeholders.get(name, name), many=segment == MANY))
    verb = f":{template.verb}" if template.verb else ""
    return "/" + "/".join(parts) + verb, parameters


def _name(template: Template, at: int) -> str:
    """Of a star: the singular of the collection before it, or the variable's own name."""
    variable = _variable(template, at)
    if variable is not None and variable.end == variable.start + 1:
        return variable.path.rpartition(".")[2]
    before = template.segments[at - 1] if at else ""
    return singular(before) if before not in ("", ONE, MANY) else "part"


def _unique(name: str, taken: list[str]) -> str:
    return name if name not in taken else next(n for i in range(2, 99) if (n := f"{name}{i}") not in taken)


def singular(word: str) -> str:
    """`tenants` → `tenant`, `policies` → `policy`; `inbox` stays."""
    for ending, instead in _ENDINGS:
        if word.endswith(ending) and len(word) > len(ending):
            return word[: -len(ending)] + instead
    return word


def _variable(template: Template, at: int) -> Variable | None:
    return next((v for v in template.variables if v.start <= at and (v.end is None or at < v.end)), None)


def _parameter(name: str, binding: Binding, at: int, example: str, *, many: bool) -> Json:
    variable = _variable(binding.template, at)
    pattern = _segment_pattern(binding, variable, at)
    fills = f"Part of `{variable.path}`." if variable is not None else "Any one segment."
    if many:
        fills += " Takes any number of segments, with the slashes between them."
    schema: Json = {"type": "string", "minLength": 1, "pattern": ".+" if many else pattern}
    found: Json = {"name": name, "in": "path", "required": True, "description": fills, "schema": schema}
    fitting = next((text for text in (example, _UUID) if re.search(schema["pattern"], text)), None)
    return found | ({"example": fitting} if fitting else {})


def _segment_pattern(binding: Binding, variable: Variable | None, at: int) -> str:
    """What the field's own expression demands of one segment, where it can be taken apart."""
    if variable is None or variable.end is None:
        return _SEGMENT
    field: Any = field_at(binding.method.descriptor.input_type, variable.path)
    parts = slashed(fields.rule(field).pattern)
    if len(parts) != variable.end - variable.start:
        return _SEGMENT
    return anchored(parts[at - variable.start])


def slashed(pattern: str) -> list[str]:
    """The parts of an expression between its slashes; nothing when a choice or a group spans them."""
    parts, depth, bracket = [""], 0, False
    for char, escaped in zip(pattern, [False, *(c == "\\" for c in pattern)], strict=False):
        if not escaped:
            bracket = (bracket or char == "[") and char != "]"
            depth += 0 if bracket else (char == "(") - (char == ")")
        outside = not bracket and not depth
        if char == "|" and outside:
            return []
        if char == "/" and not bracket:
            if depth:
                return []
            parts.append("")
        else:
            parts[-1] += char
    return [part for part in parts if _compiles(part)]


def _compiles(part: str) -> bool:
    try:
        re.compile(part)
    except re.error:
        return False
    return bool(part)
