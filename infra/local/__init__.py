"""The embedded stack: real servers from wheels, all their state in one directory, no root and no Docker needed."""

from infra.local.stack import SERVICES, Stack, find_given_services

__all__ = ["SERVICES", "Stack", "find_given_services"]
