"""The ports of scratch servers: real servers for proofs, drills and restores, apart from everything that is live.

Isolated: on 127.0.0.1 with a free port, no archiving, no slots, in a private directory, and ended by their pid when the
body is left, whatever happened. `infra/local/scratch*.py` implements them with the embedded servers.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from pydantic import SecretStr


@dataclass(frozen=True, slots=True)
class ScratchServer:
    """A PostgreSQL server on a restored directory: recovered, promoted, accepting connections of its owner only.

    Attributes:
        directory: of its data.
        port: on 127.0.0.1.
        user: a superuser.
        password: of that user, drawn for this server.
    """

    directory: Path
    port: int
    user: str
    password: SecretStr

    def url(self, database: str = "postgres") -> SecretStr:
        """Build the URL of a database; an empty name leaves it out."""
        user, password = quote(self.user, safe=""), quote(self.password.get_secret_value(), safe="")
        return SecretStr(f"postgresql://{user}:{password}@127.0.0.1:{self.port}/{quote(database, safe='')}")


class ScratchPostgres(Protocol):
    """Starts PostgreSQL on restored directories."""

    def directory(self) -> AbstractContextManager[Path]:
        """Give an empty private directory that the server can read; gone afterwards."""

    def start(self, directory: Path, superuser: str) -> AbstractContextManager[ScratchServer]:
        """Start a server on a restored directory, wait until it has recovered, and stop it in good order at the end.

        Extensions' background workers are off: a restored job must not act on the world.

        Args:
            directory: a whole data directory, below one of `directory()`.
            superuser: the role that made the cluster.

        Raises:
            VerificationError: the server did not recover, with its own last words.
        """
