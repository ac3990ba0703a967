"""Quantities count exactly and are written as Kubernetes writes them."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.kube import quantity

_SUFFIXES = ["", "n", "u", "m", "k", "M", "G", "T", "Ki", "Mi", "Gi", "Ti", "e3", "E-2"]
_texts = st.builds(
    lambda whole, part, suffix: f"{whole}{part}{suffix}",
    st.integers(0, 10**5),
    st.sampled_from(["", ".5", ".125"]),
    st.sampled_from(_SUFFIXES),
)


@pytest.mark.parametrize(
    ("text", "value", "canonical"),
    [
        ("0", 0, "0"),
        ("500m", Fraction(1, 2), "500m"),
        ("0.1", Fraction(1, 10), "100m"),
        ("1.5Gi", 3 * 2**29, "1536Mi"),
        ("1e3", 1000, "1k"),
        ("1E", 10**18, "1E"),
        ("12E2", 1200, "1200"),
        (".5", Fraction(1, 2), "500m"),
        ("5.", 5, "5"),
        ("-1500m", Fraction(-3, 2), "-1500m"),
        ("0.1n", Fraction(1, 10**9), "1n"),
        ("1024", 1024, "1024"),
        ("0.5Ki", 512, "512"),
    ],
)
def test_known_values(text: str, value: Fraction, canonical: str) -> None:
    """Each form has its exact value and its canonical text."""
    assert quantity.parse(text) == value
    assert quantity.canonical(text) == canonical


@pytest.mark.parametrize("text", ["", "1.5.5", "Gi", "1gi", "1 Gi", "1e", "0x1", "1e31", "20E", "1" * 70, "\u0661", "1\n", "NaN", "--1"])
def test_other_text_is_refused(text: str) -> None:
    """What Kubernetes would not take is a ValueError."""
    with pytest.raises(ValueError, match=r"quantity|exponent"):
        quantity.parse(text)


@settings(deadline=None)
@given(_texts)
def test_canonical_text_keeps_the_value(text: str) -> None:
    """Writing canonically changes no value, and doing it twice changes nothing."""
    canonical = quantity.canonical(text)
    assert quantity.compare(text, canonical) == 0
    assert quantity.canonical(canonical) == canonical


@settings(deadline=None)
@given(st.lists(_texts, min_size=1, max_size=6))
def test_sums_are_exact_in_any_order(texts: list[str]) -> None:
    """A sum equals the sum of the values, whatever the order."""
    exact = sum((quantity.parse(text) for text in texts), Fraction(0))
    assert quantity.parse(quantity.add(*texts)) == exact
    assert quantity.compare(quantity.add(*texts), quantity.add(*reversed(texts))) == 0


@settings(deadline=None)
@given(_texts, _texts)
def test_subtracting_undoes_adding(left: str, right: str) -> None:
    """(a + b) - b is a."""
    assert quantity.compare(quantity.subtract(quantity.add(left, right), right), left) == 0


def test_total_sums_by_resource_and_keeps_the_family() -> None:
    """Lists of resources sum by name; memory stays in binary units."""
    sums = quantity.total([{"cpu": "100m", "memory": "1Gi"}, {"cpu": "1900m", "memory": "512Mi", "pods": "3"}])
    assert sums == {"cpu": "2", "memory": "1536Mi", "pods": "3"}
