"""Subjects are built in one place and cannot be forged."""

from hypothesis import given
from hypothesis import strategies as st

from libs.bus import streams, subjects


def test_observed() -> None:
    """Groups' dots become `_`, the core group `core`, no namespace `_`."""
    assert subjects.observed("u-1", "", "v1", "pods", "acme-shop-dev") == "gems.cluster.u-1.core.v1.pods.acme-shop-dev"
    assert subjects.observed("u-1", "apiextensions.k8s.io", "v1", "crds", "") == "gems.cluster.u-1.apiextensions_k8s_io.v1.crds._"


def test_the_others() -> None:
    """Each kind has its lane, and only hints are not stored."""
    assert subjects.platform("tenancy", "tenant-created") == "gems.platform.tenancy.tenant-created"
    built = [
        subjects.desired("u"),
        subjects.interest("u"),
        subjects.jobs("default"),
        subjects.notice("tenants/acme"),
        subjects.platform("a", "b"),
    ]
    assert [subjects.stored(s) for s in built] == [False, False, True, True, True]
    assert streams.cluster("u-1").name == "CLUSTER_u-1"
    assert streams.cluster("u-1").subjects == ("gems.cluster.u-1.>",)


@given(st.text(max_size=80))
def test_a_token_is_one_token(text: str) -> None:
    """No text can make a wildcard, a second token or an empty one."""
    token = subjects.token(text)
    assert token
    assert not set(token) & set(".*> \t\r\n")


@given(st.text(max_size=30), st.text(max_size=30))
def test_tokens_do_not_collide(left: str, right: str) -> None:
    """Different texts have different tokens."""
    assert left == right or subjects.token(left) != subjects.token(right)
