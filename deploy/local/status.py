"""`status`: what runs."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping

from deploy.local import site
from deploy.local.layout import Layout

_NOT_RUNNING = 3  # as LSB says for a status


def show(layout: Layout) -> int:
    """Prints a table; the exit code is 0 when all parts are ready, 3 when nothing runs, 1 between."""
    pid = layout.running()
    if pid is None:
        print("KubeGems does not run (`make run` starts it)")
        return _NOT_RUNNING
    if not layout.status.exists():
        print(f"KubeGems is starting (pid {pid})")
        return 1
    status = json.loads(layout.status.read_text())
    print(f"KubeGems runs since {time.strftime('%H:%M:%S', time.localtime(status['started']))} (pid {pid})")
    for name, part in status["parts"].items():
        crashes = f", crashed {part['crashes']}x" if part["crashes"] else ""
        print(f"  {name:<32} {part['state']:<9} pid {part['pid'] or '-':<8} {part['log']}{crashes}")
    if layout.endpoints.exists():
        for name, value in json.loads(layout.endpoints.read_text()).items():
            if name not in ("pids", "clusters"):
                print(f"  {name:<32} {value}")
        _show_clusters(json.loads(layout.endpoints.read_text()).get("clusters", {}))
    return 0 if all(part["state"] == "ready" for part in status["parts"].values()) else 1


def _show_clusters(clusters: Mapping[str, Mapping[str, str]]) -> None:
    for cluster, facts in clusters.items():
        if cluster != site.FIRST:
            for name, value in facts.items():
                print(f"  {f'{cluster}/{name}':<32} {value}")
