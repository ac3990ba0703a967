"""kubectl, as the starter and the tests use it."""

from __future__ import annotations

import asyncio
from pathlib import Path

from deploy.local.errors import LocalError
from deploy.local.process import base_env
from deploy.local.programs import find


class Kubectl:
    """Runs kubectl with one kubeconfig and nothing of the caller's."""

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig

    async def __call__(self, *arguments: str, stdin: str | None = None, within: float = 30.0) -> str:
        """Its output; raises LocalError with what it complained about."""
        process = await asyncio.create_subprocess_exec(
            *(find("kubectl"), "--kubeconfig", str(self.kubeconfig), f"--request-timeout={within:.0f}s", *arguments),
            stdin=asyncio.subprocess.PIPE if stdin is not None else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=base_env() | {"KUBECTL_KUBERC": "false"},
        )
        try:
            async with asyncio.timeout(within + 5):
                output, complaint = await process.communicate(stdin.encode() if stdin is not None else None)
        except TimeoutError:
            raise LocalError(f"kubectl {' '.join(arguments[:3])} did not end within {within:.0f} s") from None
        finally:
            if process.returncode is None:
                process.kill()
        if process.returncode:
            raise LocalError(f"kubectl {' '.join(arguments[:3])}: {complaint.decode().strip()}")
        return output.decode()

    async def apply(self, manifest: str) -> None:
        """Server-side apply; CRDs first, then waits until they are served, then the rest."""
        await self("apply", "--server-side", "--force-conflicts", "--field-manager=kubegems-local", "-f", "-", stdin=manifest, within=60)
