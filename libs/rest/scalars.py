"""One JSON value, or one text of a query, → the value of a scalar field; ValueError says what it must be."""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor

_F = FieldDescriptor
_INTEGER = re.compile(r"-?[0-9]{1,20}")
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]*={0,2}")
_SURROGATES = re.compile("[\ud800-\udfff]")
_SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_FLOATS = (_F.CPPTYPE_FLOAT, _F.CPPTYPE_DOUBLE)
_MAX_FLOAT = float.fromhex("0x1.fffffep+127")
_BITS = {_F.CPPTYPE_INT32: (-(2**31), 2**31 - 1), _F.CPPTYPE_UINT32: (0, 2**32 - 1), _F.CPPTYPE_INT64: (-(2**63), 2**63 - 1)}
_BITS[_F.CPPTYPE_UINT64] = (0, 2**64 - 1)
Reader = Callable[[Any], Any]


def scalar(field: FieldDescriptor, *, key: bool = False, text: bool = False) -> Reader:
    """How values of a field are read.

    Args:
        field: no message.
        key: it is a map's key, which JSON has as text.
        text: values come from a query, as text.
    """
    if field.enum_type is not None:
        return _enum(field.enum_type, text=text)
    if field.type == _F.TYPE_STRING:
        return _string
    if field.type == _F.TYPE_BYTES:
        return _bytes
    if field.type == _F.TYPE_BOOL:
        return _bool_text if key or text else _bool
    if field.cpp_type in _FLOATS:
        return _float if field.cpp_type == _F.CPPTYPE_FLOAT else _double
    return _integer(*_BITS[field.cpp_type])


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("must be a text")  # noqa: TRY004 -- one kind of error for all that is wrong with a value
    if _SURROGATES.search(value):
        raise ValueError("holds half of a character")
    return value


def _bytes(value: Any) -> bytes:
    if not isinstance(value, str) or not _BASE64.fullmatch(value):
        raise ValueError("must be base64")
    try:
        return base64.urlsafe_b64decode(value.replace("+", "-").replace("/", "_").rstrip("=") + "=" * (-len(value.rstrip("=")) % 4))
    except binascii.Error as error:
        raise ValueError("must be base64") from error


def _bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")  # noqa: TRY004 -- as above
    return value


def _bool_text(value: Any) -> bool:
    if value not in ("true", "false"):
        raise ValueError("must be true or false")
    return bool(value == "true")


def _integer(least: int, most: int) -> Reader:
    def read(value: Any) -> int:
        number = _whole(value)
        if not least <= number <= most:
            raise ValueError(f"must be {least} to {most}")
        return number

    return read


def _whole(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and _INTEGER.fullmatch(value):
        return int(value)
    number = float(value) if isinstance(value, float) or (isinstance(value, str) and _NUMBER.fullmatch(value)) else math.nan
    if not number.is_integer():
        raise ValueError("must be a whole number")
    return int(number)


def _double(value: Any) -> float:
    if isinstance(value, str):
        if value in _SPECIAL:
            return _SPECIAL[value]
        if not _NUMBER.fullmatch(value):
            raise ValueError("must be a number")
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError("must be a number")  # noqa: TRY004 -- as above
    try:
        number = float(value)
    except OverflowError as error:
        raise ValueError("is too large") from error
    if not math.isfinite(number):
        raise ValueError("is too large")
    return number


def _float(value: Any) -> float:
    number = _double(value)
    if math.isfinite(number) and abs(number) > _MAX_FLOAT:
        raise ValueError("is too large")
    return number


def _enum(enum: EnumDescriptor, *, text: bool) -> Reader:
    numbers = {name: value.number for name, value in enum.values_by_name.items()}
    least, most = _BITS[_F.CPPTYPE_INT32]

    def read(value: Any) -> int:
        if value is None and enum.full_name == "google.protobuf.NullValue":
            return 0
        if isinstance(value, str) and value in numbers:
            return numbers[value]
        number = int(value) if text and isinstance(value, str) and _INTEGER.fullmatch(value) else value
        if isinstance(number, int) and not isinstance(number, bool) and least <= number <= most:
            return number
        raise ValueError(f"is none of {', '.join(numbers)}")

    return read
