"""The kinds that every agent observes."""

from __future__ import annotations

from libs.kube.observed import BASE

__all__ = ["BASE"]
