"""Kube: the Kubernetes API, as raw bytes and plain dictionaries.

`KubeClient` reads, writes and applies objects with a deadline on each request; `Reflector` keeps an indexed copy of a
kind up to date for ever (list, watch, bookmarks, silence limit, jitter, 410 in both forms) and tells of every change;
`Resource` names a kind; `quantity` counts exactly as Kubernetes does. Errors come as Faults built from the server's
own `Status`. A user is an argument of a call (`impersonate`), never state of a client. It refuses model classes,
default users, unbounded lists in one answer, and to take a missing kind for an empty one.
"""

from __future__ import annotations

from libs.kube.client import JSON_PATCH, MERGE_PATCH, KubeClient, Page
from libs.kube.connection import Connection
from libs.kube.errors import Conflict, Expired, KindMissing
from libs.kube.principal import Principal
from libs.kube.reflector import Reflector
from libs.kube.resources import Resource
from libs.kube.store import Change, Store, Verb
from libs.kube.watch import Event

__all__ = [
    "JSON_PATCH",
    "MERGE_PATCH",
    "Change",
    "Conflict",
    "Connection",
    "Event",
    "Expired",
    "KindMissing",
    "KubeClient",
    "Page",
    "Principal",
    "Reflector",
    "Resource",
    "Store",
    "Verb",
]
