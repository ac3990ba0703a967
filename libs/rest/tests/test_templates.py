"""Path templates, routes and paths."""

from __future__ import annotations

import pytest

from libs.faults import Invalid
from libs.rest import paths
from libs.rest.template import Routes, Variable, parse


@pytest.mark.parametrize(
    ("text", "segments", "verb", "variables"),
    [
        ("/api/v1/tenants", ("api", "v1", "tenants"), "", ()),
        ("/v1/{name=users/*}", ("v1", "users", "*"), "", (Variable("name", 1, 3),)),
        ("/v1/{user.name=users/*}:disable", ("v1", "users", "*"), "disable", (Variable("user.name", 1, 3),)),
        ("/v1/{name=a/*/b/*}/c", ("v1", "a", "*", "b", "*", "c"), "", (Variable("name", 1, 5),)),
        ("/v1/{id}/x/{other}", ("v1", "*", "x", "*"), "", (Variable("id", 1, 2), Variable("other", 3, 4))),
        ("/v1/sessions:refresh", ("v1", "sessions"), "refresh", ()),
        ("/v1/{rest=files/**}", ("v1", "files", "**"), "", (Variable("rest", 1, None),)),
    ],
)
def test_parses(text: str, segments: tuple[str, ...], verb: str, variables: tuple[Variable, ...]) -> None:
    """Literals, wildcards, nested variables and verbs."""
    template = parse(text)
    assert (template.segments, template.verb, template.variables) == (segments, verb, variables)


@pytest.mark.parametrize("text", ["v1/x", "/v1/{name", "/v1/{a=b/*}c", "/v1/**/x", "/v1//x"])
def test_refuses_what_is_no_template(text: str) -> None:
    """A template that cannot be matched refuses to start."""
    with pytest.raises(ValueError, match=r".+"):
        parse(text)


def _routes() -> Routes[str]:
    routes: Routes[str] = Routes()
    for method, text in [
        ("GET", "/v1/{name=users/*}"), ("DELETE", "/v1/{name=users/*}"), ("POST", "/v1/{name=users/*}:disable"), ("GET", "/v1/users/me"),
        ("GET", "/v1/users:search"), ("GET", "/v1/users"), ("GET", "/v1/{path=files/**}"), ("GET", "/v1/{name=users/*/keys/*}"),
    ]:  # fmt: skip
        routes.add(method, parse(text), f"{method} {text}")
    return routes


@pytest.mark.parametrize(
    ("path", "method", "template"),
    [
        ("v1/users/dev", "GET", "/v1/{name=users/*}"),
        ("v1/users/dev:disable", "POST", "/v1/{name=users/*}:disable"),
        ("v1/users/me", "GET", "/v1/users/me"),
        ("v1/users:search", "GET", "/v1/users:search"),
        ("v1/users/a:b", "GET", "/v1/{name=users/*}"),
        ("v1/files/a/b/c", "GET", "/v1/{path=files/**}"),
        ("v1/users/me/keys/k", "GET", "/v1/{name=users/*/keys/*}"),
    ],
)
def test_finds(path: str, method: str, template: str) -> None:
    """Literals win over wildcards, verbs over colons; a literal that leads nowhere is given up for the wildcard."""
    assert _routes().find(path.split("/"))[method][0] == f"{method} {template}"


def test_tells_all_methods_of_a_path() -> None:
    """What is there under another method is found, for `Allow`; elsewhere nothing is."""
    assert set(_routes().find(["v1", "users", "dev"])) == {"GET", "DELETE"}
    assert _routes().find(["v1", "nothing"]) == {}
    assert _routes().find(["v1", "users", "dev:explode"]).keys() == {"GET", "DELETE"}


def test_refuses_the_same_place_twice() -> None:
    """Two RPCs at one path and method would hide one."""
    routes = _routes()
    with pytest.raises(ValueError, match="bound twice"):
        routes.add("GET", parse("/v1/{other=users/*}"), "x")


_DOTS = ["/a//b", "/a/../b", "/a/%2e%2e/b", "/a/./b", "/a/"]
_CODES = ["/a/b%2Fc", "/a/b%5Cc", "/a/b\\c", "/a/%00", "/a/%zz", "/a/%ff", "/a?b=%zz&c=", "/a?x"]


@pytest.mark.parametrize("target", [*_DOTS, *_CODES, "a/b", "/a#b"])
def test_refuses_crooked_paths(target: str) -> None:
    """What two parsers could read differently is read by none."""
    with pytest.raises(Invalid):
        paths.split(target)


def test_splits_straight_ones() -> None:
    """Segments and parameters come decoded, in order, repeated ones too."""
    assert paths.split("/a/b%20c/d@e:x?q=1&q=%C3%A9&r=") == (["a", "b c", "d@e:x"], [("q", "1"), ("q", "é"), ("r", "")])
