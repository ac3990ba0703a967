"""The controls: the search finds what it is for, and lets pass what we say."""

from __future__ import annotations

import pytest

from tests.integration.errors.wire import leaks


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('Traceback (most recent call last):\n  File "/srv/hub/api.py", line 7, in get', "a stack"),
        ("RuntimeError: boom", "an exception's name"),
        ("asyncpg.exceptions.UndefinedTableError", "an exception's name"),
        ("cannot connect to 10.1.2.3", "an address"),
        ("dial tcp db.internal.example:5432", "an address"),
        ("failed to call webhook https://hook/validate", "an address"),
        ("no such file: /etc/kubegems/key", "a path"),
        ('relation "tenants" does not exist', "SQL"),
        ("syntax error at SELECT name", "SQL"),
        ("in tenancy.tenants there is", "a table"),
    ],
)
def test_it_finds(text: str, what: str) -> None:
    """Each kind."""
    assert any(found.startswith(what) for found in leaks(text, tables=["tenancy.tenants"])), leaks(text)


@pytest.mark.parametrize(
    "text",
    [
        "tenants/acme does not exist",
        "needs the permission tenancy.tenants.get at tenants/acme",
        "cluster local is offline: its agent has no tunnel to the hub; try again in 5 s",
        "internal error; tell the operator this id: 01a21175ba75765ab684cd29ba002522",
        "the database is away; try again",
        "limits.cpu: 30 is asked for, 20 is left",
    ],
)
def test_it_lets_pass(text: str) -> None:
    """Our own sentences."""
    assert not leaks(text)
