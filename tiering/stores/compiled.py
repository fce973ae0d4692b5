"""`@compiled`: numba's machine code without the interpreter lock, kept on disk.

numba keeps it beside the source, else in the user's cache directory; where neither can be written (a read-only
installation without a home) in a new private directory, for this process alone.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba

_config: Any = numba.config


def _has_cache_room() -> bool:
    home = Path.home()
    return bool(_config.CACHE_DIR) or any(os.access(p, os.W_OK) for p in (Path(__file__).parent, home))


if not _has_cache_room():
    # Ours alone, and new: numba trusts what it finds there, and anybody may have made a name that can be guessed.
    _config.CACHE_DIR = tempfile.mkdtemp(prefix="tiering-numba-")


def compiled(function: Callable[..., object]) -> Any:
    """Compile a function at its first call, or load it from disk."""
    return numba.njit(nogil=True, cache=True)(function)
