"""`python -m deploy.join.doctor`: which grants of a cluster let KubeGems' accounts do more than the join manifest says.

Run it as that cluster's admin. It reads the cluster's RBAC and compares it with the manifest: a binding that reaches the
ServiceAccounts of agent or controller, the groups that all ServiceAccounts are in, or a user or group `gems:…`; a rule
that someone added to a role of ours, directly or by an aggregation label. Exit code 1 when it found something.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.local.errors import LocalError
from deploy.local.kubectl import Kubectl
from libs.kube import manifest

Object = Mapping[str, Any]
_ACCOUNTS = ("gems-agent", "gems-controller")
_KINDS = ("clusterroles", "clusterrolebindings", "roles", "rolebindings")
_EVERYONES = {f"system:{name}" for name in ("basic-user", "discovery", "public-info-viewer", "service-account-issuer-discovery")}
_PEOPLE = ("gems:operator", "gems:reader")  # what the controller binds in environments
_GATE = 'kubernetes_feature_enabled{name="ConstrainedImpersonation"'
Key = tuple[str, str, str]


@dataclass(slots=True)
class Report:
    """What was found.

    Attributes:
        findings: grants beyond the manifest, a line each.
        notes: what is as the manifest says, and worth knowing.
        constrained: whether the API server has constrained impersonation on; None: it does not say.
    """

    findings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    constrained: bool | None = None

    def show(self) -> int:
        """Prints it; 1 when there are findings."""
        for line in self.findings:
            print(f"  BEYOND THE MANIFEST  {line}")
        for line in self.notes:
            print(f"  note                 {line}")
        known = {True: "available", False: "not available: which users the agent names cannot be limited", None: "not known"}
        print(f"  constrained impersonation: {known[self.constrained]}")
        print("  nothing is wrong" if not self.findings else f"  {len(self.findings)} grants to look at")
        return 1 if self.findings else 0


class Doctor:
    """Looks at one cluster.

    Args:
        kubectl: as the cluster's admin.
        namespace: where agent and controller live.
        without_cluster_admin: platform admins were not to be cluster admins.
    """

    def __init__(self, kubectl: Kubectl, *, namespace: str = manifest.NAMESPACE, without_cluster_admin: bool = False) -> None:
        self._kubectl = kubectl
        self._namespace = namespace
        documents = manifest.documents(namespace=namespace, without_cluster_admin=without_cluster_admin)
        self._ours = {_key(found): found for found in documents if found["apiVersion"].startswith("rbac.")}

    async def examine(self) -> Report:
        """Reads the cluster's RBAC; raises LocalError when it cannot."""
        report = Report(constrained=await self._constrained())
        listed = json.loads(await self._kubectl("get", ",".join(_KINDS), "--all-namespaces", "-o", "json", within=60))["items"]
        there = {_key(found): found for found in listed}
        for key, found in sorted(there.items()):
            if key[0].endswith("Binding"):
                self._binding(report, key, found, there)
            else:
                self._role(report, key, found)
        return report

    def _binding(self, report: Report, key: Key, found: Object, there: Mapping[Key, Object]) -> None:
        if found["roleRef"]["name"] in _EVERYONES:
            return
        ours = self._ours.get(key)
        expected = {_subject(s) for s in ours.get("subjects") or ()} if ours and _target(ours) == _target(found) else set()
        role = there.get((found["roleRef"]["kind"], key[1] if found["roleRef"]["kind"] == "Role" else "", found["roleRef"]["name"]), {})
        for subject in found.get("subjects") or ():
            reached = self._reached(subject)
            if not reached or _subject(subject) in expected or self._environments(key, found, subject):
                continue
            report.findings.append(f"{_told(key)} gives {reached} {found['roleRef']['kind']} {found['roleRef']['name']}{_power(role)}")
        if key == ("ClusterRoleBinding", "", "gems:platform:admin") and expected:
            report.notes.append("platform admins are cluster admins here; a join token with `withoutClusterAdmin` leaves that out")

    def _reached(self, subject: Object) -> str:
        """Who of ours a subject is; empty for others."""
        kind, name, namespace = subject["kind"], subject["name"], subject.get("namespace", "")
        if kind == "ServiceAccount" and namespace == self._namespace and name in _ACCOUNTS:
            return str(name)
        if kind == "User" and name in {f"system:serviceaccount:{self._namespace}:{account}" for account in _ACCOUNTS}:
            return str(name).rpartition(":")[2]
        if kind == "Group" and name in ("system:serviceaccounts", f"system:serviceaccounts:{self._namespace}"):
            return f"agent and controller (by group {name})"
        if kind == "Group" and name in ("system:authenticated", "system:unauthenticated"):
            return f"everyone (by group {name})"
        return f"{kind.lower()} {name}" if kind in ("User", "Group") and name.startswith("gems:") else ""

    def _environments(self, key: Key, found: Object, subject: Object) -> bool:
        """Whether it is one of those that the controller makes in an environment: people of the platform, as operator or reader."""
        people = subject["kind"] == "Group" and subject["name"].startswith(("gems:tenant:", "gems:project:", "gems:environment:"))
        return key[0] == "RoleBinding" and people and found["roleRef"]["kind"] == "ClusterRole" and found["roleRef"]["name"] in _PEOPLE

    def _role(self, report: Report, key: Key, found: Object) -> None:
        ours = self._ours.get(key)
        labels = found["metadata"].get("labels") or {}
        if ours is None:
            if "gems.kubegems.io/aggregate-to-observer" in labels:
                report.findings.append(f"{_told(key)} adds to what the agent watches{_power(found)}")
        elif key[2] == "gems:impersonated":
            for rule in found.get("rules") or ():
                if not _only_groups(rule):
                    report.findings.append(f"{_told(key)} lets the agent act for more than groups of environments: {_short(rule)}")
        elif not ours.get("aggregationRule"):
            known = {_atom for rule in ours.get("rules") or () for _atom in _atoms(rule)}
            more = sorted({_atom for rule in found.get("rules") or () for _atom in _atoms(rule)} - known)
            if more:
                report.findings.append(f"{_told(key)} holds more than in the manifest: {', '.join(' '.join(a) for a in more[:3])}")

    async def _constrained(self) -> bool | None:
        """By the feature gate that the API server's metrics tell."""
        try:
            text = await self._kubectl("get", "--raw", "/metrics", within=60)
        except LocalError:
            return None
        line = next((line for line in text.splitlines() if line.startswith(_GATE)), "")
        return line.rstrip().endswith(" 1") if line else False


def _key(found: Object) -> Key:
    return found["kind"], found["metadata"].get("namespace", ""), found["metadata"]["name"]


def _target(found: Object) -> tuple[str, str]:
    return found["roleRef"]["kind"], found["roleRef"]["name"]


def _subject(subject: Object) -> Key:
    return subject["kind"], subject.get("namespace", ""), subject["name"]


def _only_groups(rule: Object) -> bool:
    names = rule.get("resourceNames") or []
    groups = rule.get("resources") == ["groups"] and rule.get("verbs") == ["impersonate"]
    return bool(groups and names and all(name.startswith("gems:") and not name.startswith("gems:platform:") for name in names))


def _atoms(rule: Object) -> Iterator[tuple[str, ...]]:
    for verb in rule.get("verbs") or ():
        for url in rule.get("nonResourceURLs") or ():
            yield verb, url
        for group in rule.get("apiGroups") or ():
            for resource in rule.get("resources") or ():
                for name in rule.get("resourceNames") or ("",):
                    yield verb, f"{resource}.{group}" if group else resource, *((name,) if name else ())


def _power(role: Object) -> str:
    """What makes a role dangerous, in words; empty for nothing special."""
    return "; ".join(("", *dict.fromkeys(_dangers(role.get("rules") or ()))))


def _dangers(rules: Iterable[Object]) -> Iterator[str]:
    for rule in rules:
        verbs, resources = set(rule.get("verbs") or ()), set(rule.get("resources") or ())
        if "*" in verbs and "*" in resources:
            yield "may do everything"
        elif verbs & {"impersonate", "*"} and resources & {"users", "groups", "*"} and not rule.get("resourceNames"):
            yield "may act as anyone"
        elif resources & {"secrets", "*"} and verbs & {"get", "list", "watch", "*"}:
            yield "may read secrets"


def _told(key: Key) -> str:
    kind, namespace, name = key
    return f"{kind} {namespace}/{name}" if namespace else f"{kind} {name}"


def _short(rule: Object) -> str:
    return json.dumps({name: value for name, value in rule.items() if value})[:120]


def main() -> int:
    """Examines the cluster of a kubeconfig."""
    parser = argparse.ArgumentParser(prog="python -m deploy.join.doctor", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kubeconfig", type=Path, default=Path.home() / ".kube/config", help="of the cluster's admin")
    parser.add_argument("--namespace", default=manifest.NAMESPACE, help="of agent and controller")
    parser.add_argument("--without-cluster-admin", action="store_true", help="platform admins should not be cluster admins here")
    given = parser.parse_args()
    doctor = Doctor(Kubectl(given.kubeconfig), namespace=given.namespace, without_cluster_admin=given.without_cluster_admin)
    try:
        return asyncio.run(doctor.examine()).show()
    except LocalError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
