#!/usr/bin/env python3
"""kubectl-gems: signs kubectl in to a KubeGems hub, and keeps it signed in. Needs Python 3.9 and nothing else.

    kubectl-gems login https://hub.example:8443 --ca-file ca.crt [--username NAME]
    kubectl-gems token https://hub.example:8443      what kubectl calls by itself: an ExecCredential
    kubectl-gems logout https://hub.example:8443

The session lies in one file per hub (0600, in $KUBEGEMS_HOME, else ~/.kubegems). Its refresh token is good for one use,
so the file is locked while a new one is fetched; the old is kept until the new one is on disk.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import fcntl
import getpass
import json
import os
import re
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

EARLY = dt.timedelta(seconds=60)  # a token that ends so soon is renewed first
SECONDS = 20
COMMANDS = {"login": "sign in", "token": "print a token for kubectl, which calls this by itself", "logout": "end the session"}


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; the exit code."""
    given = parsed(arguments)
    try:
        with held(given.server.rstrip("/")) as state:
            run(given, state)
    except (OSError, ValueError, EOFError, KeyboardInterrupt, Refused) as error:
        print(f"kubectl-gems: {_said(error)}", file=sys.stderr)
        return 1
    return 0


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="kubectl-gems", description="Signs kubectl in to a KubeGems hub, and keeps it signed in.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, meaning in COMMANDS.items():
        command = commands.add_parser(name, help=meaning, description=meaning)
        command.add_argument("server", help="the hub, such as https://hub.example:8443")
        if name == "login":
            command.add_argument("--ca-file", type=Path, help="the hub's CA, where the system does not trust it; kept")
            command.add_argument("--username", default="", help="asked for when missing")
            command.add_argument("--password-file", type=Path, help="for scripts; people are asked")
    return parser.parse_args(arguments)


class Refused(Exception):
    """The hub said no."""


class State:
    """The file of one hub: its CA and the session's tokens."""

    def __init__(self, server: str, file: Path) -> None:
        self.server, self.file = server, file
        self.content: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}

    def keep(self, **changes: Any) -> None:
        """Writes it whole or not at all, for its owner alone."""
        self.content.update(changes)
        new = self.file.with_suffix(".new")
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as out:
            json.dump(self.content, out)
            out.flush()
            os.fsync(out.fileno())
        new.replace(self.file)

    def ask(self, path: str, body: dict[str, str] | None, *, method: str = "POST", token: str = "") -> dict[str, Any]:
        """One REST call; Refused with the hub's own words."""
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.server + path, data=data, headers=headers, method=method)  # noqa: S310 -- https, see `held`
        context = ssl.create_default_context(cadata=self.content.get("ca") or None)
        try:
            with urllib.request.urlopen(request, timeout=SECONDS, context=context) as reply:  # noqa: S310 -- as above
                found: dict[str, Any] = json.load(reply)
        except urllib.error.HTTPError as error:
            raise Refused(_told(error)) from error
        return found

    def keep_tokens(self, reply: dict[str, Any]) -> None:
        """Keeps what signing in or refreshing gave."""
        self.keep(access=reply["accessToken"], refresh=reply["refreshToken"], expires=reply["expireTime"])


@contextlib.contextmanager
def held(server: str) -> Iterator[State]:
    """The state of a hub, for one process at a time."""
    if not server.startswith("https://"):
        raise ValueError("the server must be an https:// address")
    folder = Path(os.environ.get("KUBEGEMS_HOME") or Path.home() / ".kubegems")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    name = re.sub(r"[^A-Za-z0-9.-]", "_", server.removeprefix("https://"))
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield State(server, folder / f"{name}.json")


def run(given: argparse.Namespace, state: State) -> None:
    """One command."""
    if given.command == "login":
        login(given, state)
    elif given.command == "token":
        print(json.dumps(credential(state)))
    else:
        with contextlib.suppress(Refused):
            state.ask("/api/v1/users/me/sessions/current", None, method="DELETE", token=fresh(state))
        state.file.unlink(missing_ok=True)


def login(given: argparse.Namespace, state: State) -> None:
    """Signs in by password and keeps the session."""
    username = given.username or input("user name: ")
    password = given.password_file.read_text().rstrip("\n") if given.password_file else getpass.getpass(f"password of {username}: ")
    state.content = {"ca": given.ca_file.read_text() if given.ca_file else state.content.get("ca", "")}
    state.keep_tokens(state.ask("/api/v1/sessions", {"username": username, "password": password}))


def fresh(state: State) -> str:
    """An access token that is good for a while yet."""
    if "refresh" not in state.content:
        raise Refused(f"not signed in: run `kubectl-gems login {state.server}`")
    ends = dt.datetime.fromisoformat(re.sub(r"(\.\d+)?Z$", "+00:00", state.content["expires"]))
    if ends - EARLY < dt.datetime.now(dt.timezone.utc):  # noqa: UP017 -- Python 3.9 has no datetime.UTC
        try:
            state.keep_tokens(state.ask("/api/v1/sessions:refresh", {"refreshToken": state.content["refresh"]}))
        except Refused as error:
            raise Refused(f"{error}; run `kubectl-gems login {state.server}`") from error
    return str(state.content["access"])


def credential(state: State) -> dict[str, Any]:
    """What kubectl wants of an exec plugin."""
    token = fresh(state)
    status = {"token": token, "expirationTimestamp": state.content["expires"]}
    return {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status}


def _said(error: BaseException) -> str:
    """What went wrong, in words that help."""
    if isinstance(error, (EOFError, KeyboardInterrupt)):
        return "nobody answered; scripts use --username and --password-file"
    if isinstance(error, urllib.error.URLError):
        hint = "; is its CA the one of --ca-file?" if isinstance(error.reason, ssl.SSLCertVerificationError) else ""
        return f"the hub cannot be reached: {error.reason}{hint}"
    return str(error)


def _told(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {error.code}"


if __name__ == "__main__":
    sys.exit(main())
