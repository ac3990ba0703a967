"""The API's document: valid, whole, true to the rules, small, and served with a page to browse it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import orjson
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from kubegems.policy.v1 import policy_pb2
from libs.rest.openapi import comments
from services.gateway.edge import docs
from services.gateway.identity.rights import known_permissions
from tests.contract.api import api, methods
from tests.contract.edge import Edge

ROOT = Path(__file__).parents[2]
DOCUMENT = api()
OPERATIONS = {op["operationId"]: op for path in DOCUMENT["paths"].values() for op in path.values()}
_USER = policy_pb2.Rule.USER
_MOST_BYTES, _MOST_SQUEEZED = 600_000, 80_000


def test_it_is_valid() -> None:
    """By a validator of others, of OpenAPI 3.1; a broken one is refused."""
    OpenAPIV31SpecValidator(DOCUMENT).validate()
    broken = DOCUMENT | {"paths": {"/x": {"get": {"responses": {}, "parameters": [{"name": "x"}]}}}}
    assert not OpenAPIV31SpecValidator(broken).is_valid()


def test_every_public_rpc_is_there() -> None:
    """Each one that is bound to HTTP, with its permission; no internal one; nothing without a comment."""
    public = {m.path.lstrip("/"): m for m in methods() if not m.rule.internal}
    described = {op["x-kubegems-method"] for op in OPERATIONS.values()}
    assert described == public.keys()
    for op in OPERATIONS.values():
        rule = public[op["x-kubegems-method"]].rule
        assert op.get("x-kubegems-permission", "") == rule.permission
        assert rule.permission == "" or rule.permission in known_permissions()
        assert ("security" in op) == (rule.auth != _USER)
        assert {"400", "401", "429", "500", "503"} <= op["responses"].keys()
        assert len(op["description"]) > 20
    assert len(OPERATIONS) == sum(len(path) for path in DOCUMENT["paths"].values())


def test_every_name_has_its_comment() -> None:
    """`gen/` holds the comments of the protos as they are."""
    said = comments.load()
    silent = [m.descriptor.full_name for m in methods() if not said.get(m.descriptor.full_name)]
    silent += [f.full_name for m in methods() for f in m.descriptor.input_type.fields if not said.get(f.full_name)]
    assert not silent, "run make gen"


def _examples() -> list[tuple[str, Any, Any]]:
    found = []
    for name, op in OPERATIONS.items():
        parts = [("request", op.get("requestBody", {}).get("content", {}))] + [
            (s, r.get("content", {})) for s, r in op["responses"].items()
        ]
        for part, content in parts:
            found += [(f"{name} {part}", media["schema"], media["example"]) for media in content.values() if "example" in media]
        found += [(f"{name} {p['name']}", p["schema"], p["example"]) for p in op["parameters"] if "example" in p]
    for name, response in DOCUMENT["components"]["responses"].items():
        found += [(name, media["schema"], media["example"]) for media in response["content"].values()]
    return found


def test_every_example_fits_its_schema() -> None:
    """What we show would be taken, and is what we answer."""
    examples = _examples()
    assert len(examples) > len(OPERATIONS)
    wrong = []
    for name, schema, example in examples:
        validator = jsonschema_rs.Draft202012Validator({**schema, "components": DOCUMENT["components"]})
        wrong += [f"{name}: {error.message}" for error in validator.iter_errors(example)]
    assert not wrong, "\n".join(wrong)


def test_it_is_small() -> None:
    """A browser fetches it in a moment."""
    raw = orjson.dumps(DOCUMENT)
    assert (len(raw), len(gzip.compress(raw))) < (_MOST_BYTES, _MOST_SQUEEZED)


async def test_it_is_served(edge: Edge) -> None:
    """To everyone, as it is made here, compressed, and once."""
    first = await edge.nobody.call("GET", "//openapi.json")
    assert (first.status, first.body) == (200, json.loads(orjson.dumps(DOCUMENT)))
    assert first.headers["Content-Encoding"] == "gzip"
    assert (await edge.nobody.call("GET", "//openapi.json", If_None_Match=first.headers["Etag"])).status == 304


async def test_the_page_asks_nobody_else(edge: Edge) -> None:
    """Without a viewer it says how to get one; with one it runs own scripts alone, under a strict policy."""
    page = await edge.nobody.call("GET", "//docs")
    policy = page.headers["Content-Security-Policy"]
    assert (page.status, page.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert policy.startswith("default-src 'none'; script-src 'self'; ")
    assert "unsafe" not in policy
    assert "http" not in page.body.replace("openapi", "")
    if "swagger-ui-bundle.js" in page.body:
        for name in ("swagger-ui-bundle.js", "swagger-ui.css", "start.js"):
            assert (await edge.nobody.call("GET", f"//docs/{name}")).status == 200
    else:
        assert "make viewer" in page.body


@pytest.mark.parametrize("whole", [True, False])
def test_a_viewer_with_a_file_missing_is_none(tmp_path: Path, *, whole: bool) -> None:
    """Half of one would be a blank page."""
    for name in list(docs._VIEWER)[: None if whole else 1]:
        (tmp_path / name).write_bytes(b"x")
    assert bool(docs._files(tmp_path)) is whole
    assert docs._files(None) == {}


def test_the_viewer_is_pinned() -> None:
    """By hash, with no address to fetch it from, and no script of a package runs."""
    lock = json.loads((ROOT / "deploy/viewer/package-lock.json").read_text())
    packages = {name: package for name, package in lock["packages"].items() if name}
    assert all(package["integrity"].startswith("sha512-") for package in packages.values())
    assert not any("resolved" in package for package in packages.values())
    assert "ignore-scripts=true" in (ROOT / "deploy/viewer/.npmrc").read_text()
