"""Kubernetes quantities, exactly: text to Fraction and back, as apimachinery's `resource.Quantity` does.

Sums never round: `0.1 + 0.2` is `300m`. What is finer than a billionth is rounded up, away from zero, as the API
server does. The written form is the canonical one: the greatest suffix that needs no decimal point.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fractions import Fraction

_SYNTAX = re.compile(r"([+-]?)(\d+(?:\.\d*)?|\.\d+)(Ki|Mi|Gi|Ti|Pi|Ei|[numkMGTPE]|[eE][+-]?\d+)?", re.ASCII)
_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY = {"Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4, "Pi": 5, "Ei": 6}
_NANO = Fraction(1, 10**9)
_MAX = 2**63 - 1  # what the API server caps at
_MAX_LENGTH = 64
_MAX_EXPONENT = 30


def parse(text: str) -> Fraction:
    """The exact value of a quantity such as `500m`, `1.5Gi` or `1e3`; ValueError says what is wrong with which text."""
    match = _SYNTAX.fullmatch(text) if len(text) <= _MAX_LENGTH else None
    if match is None:
        raise ValueError(f"{text[:_MAX_LENGTH]!r} is not a quantity such as 500m, 2 or 1.5Gi")
    sign, digits, suffix = match.groups()
    value = Fraction(digits if digits[-1] != "." else digits[:-1]) * _scale(suffix or "", text)
    if value > _MAX:
        raise ValueError(f"{text!r} is more than a quantity can hold")
    return -_rounded_up(value) if sign == "-" else _rounded_up(value)


def format(value: Fraction | int, *, binary: bool = False) -> str:  # noqa: A001 -- reads `quantity.format`
    """The canonical text of a value; `binary` prefers Ki, Mi, … where the value is whole.

    Values that need a decimal point in binary form come in decimal form, as in Kubernetes.
    """
    value = Fraction(value)
    if binary and value.denominator == 1 and abs(value) >= 1024:  # noqa: PLR2004 -- 1 Ki
        return _binary_text(value.numerator)
    sign, value = ("-" if value < 0 else ""), _rounded_up(abs(value))
    for suffix, power in reversed(_DECIMAL.items()):
        count = value / Fraction(10) ** power
        if count.denominator == 1 and (count or not suffix):
            return f"{sign}{count.numerator}{suffix}"
    raise AssertionError("rounded to nano, so some suffix fits")


def is_binary(text: str) -> bool:
    """Whether a quantity is written with a binary suffix."""
    return text[-2:] in _BINARY


def add(*texts: str) -> str:
    """The sum of quantities, written in the first one's family; `0` for none."""
    total = sum((parse(text) for text in texts), Fraction(0))
    return format(total, binary=any(is_binary(text) for text in texts))


def subtract(left: str, right: str) -> str:
    """`left - right`, written in the family of either that is binary."""
    return format(parse(left) - parse(right), binary=is_binary(left) or is_binary(right))


def total(lists: Iterable[dict[str, str]]) -> dict[str, str]:
    """Sums of resource lists, by resource, sorted by name."""
    sums: dict[str, Fraction] = {}
    binary: set[str] = set()
    for resources in lists:
        for name, text in resources.items():
            sums[name] = sums.get(name, Fraction(0)) + parse(text)
            if is_binary(text):
                binary.add(name)
    return {name: format(sums[name], binary=name in binary) for name in sorted(sums)}


def compare(left: str, right: str) -> int:
    """-1, 0 or 1 as left is less than, equal to or greater than right."""
    a, b = parse(left), parse(right)
    return (a > b) - (a < b)


def canonical(text: str) -> str:
    """The same quantity as the API server would write it."""
    return format(parse(text), binary=is_binary(text))


def _scale(suffix: str, text: str) -> Fraction:
    if suffix in _BINARY:
        return Fraction(1024) ** _BINARY[suffix]
    if suffix in _DECIMAL:
        return Fraction(10) ** _DECIMAL[suffix]
    exponent = int(suffix[1:])
    if abs(exponent) > _MAX_EXPONENT:
        raise ValueError(f"{text!r} has an exponent beyond {_MAX_EXPONENT}")
    return Fraction(10) ** exponent


def _rounded_up(value: Fraction) -> Fraction:
    units = value / _NANO
    return Fraction(-(-units.numerator // units.denominator)) * _NANO


def _binary_text(value: int) -> str:
    for suffix, power in reversed(_BINARY.items()):
        count, rest = divmod(value, 1024**power)
        if not rest:
            return f"{count}{suffix}"
    return format(value)
