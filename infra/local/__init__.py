"""The embedded stack: real servers from wheels, all their state in one directory, no root and no Docker needed."""

from infra.local.stack import SERVICES, Stack

__all__ = ["SERVICES", "Stack"]
