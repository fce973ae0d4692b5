"""What stands under a key of the cache, and the scripts that change it: values, fences and leases.

One key holds one of:
- a *value* `V` or the knowledge that there is none `N`: kind, stamp, nonce, time until which it is fresh, payload;
- a *lease* `L`: somebody read "nothing here" and asks the database. Only the holder may fill the key;
- a *fence* `F`: a writer is about to change the database. Readers ask the database and nobody fills.

Why that is enough for linearizability, as long as the server keeps what it was told: a value gets here only through
a lease that no fence has taken away since before the database was read, or from the one writer whose fence stood
alone from before its commit; and it goes before the next commit begins. So a value always is what the database
would answer now. Source: Nishtala et al., "Scaling Memcache at Facebook", NSDI 2013, §3.2.1; a fence instead of
their delete after the write, because a writer may die between the two.
What a server forgot (a crash, a failover) is told by the *stamp*: of the process that took the value, and of the
epoch that the database keeps (stores/trust.py). A value with another stamp than the answering lane's does not count.
"""

from __future__ import annotations

import secrets
import struct
from dataclasses import dataclass
from hashlib import sha1

TOKEN_BYTES = 8
_HEADER = struct.Struct(">c8s4sd")
HEADER_BYTES = _HEADER.size
VALUE, NOTHING, LEASE, FENCE = b"V", b"N", b"L", b"F"
_ALONE, _CONTENDED = b"-", b"+"


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script, and the name by which a server knows it."""

    text: bytes
    sha: bytes


def _script(text: str) -> Script:
    return Script(text.encode(), sha1(text.encode(), usedforsecurity=False).hexdigest().encode())


FENCE_SCRIPT = _script("""
-- KEYS: one key. ARGV: token, milliseconds.
local held = redis.call('GET', KEYS[1])
local fence = 'F-' .. ARGV[1]
if held and string.sub(held, 1, 1) == 'F' then fence = 'F+' .. string.sub(held, 3) .. ARGV[1] end
redis.call('SET', KEYS[1], fence, 'PX', ARGV[2])
return 1
""")
"""Put up a fence; beside another writer's, both know that they are not alone."""

SETTLE_SCRIPT = _script("""
-- KEYS: one key. ARGV: token, value or '', milliseconds.
-- Answers 1: stored; 2: the fence stood, nothing stored; 0: it was gone.
local held = redis.call('GET', KEYS[1])
if not held then return 0 end
if held == 'F-' .. ARGV[1] then
  if ARGV[2] == '' then redis.call('DEL', KEYS[1]) return 2 end
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
  return 1
end
if string.sub(held, 1, 1) ~= 'F' then
  redis.call('DEL', KEYS[1])
  return 0
end
local rest, found = '', 0
for at = 3, #held, 8 do
  local token = string.sub(held, at, at + 7)
  if token == ARGV[1] then found = 2 else rest = rest .. token end
end
if rest == '' then redis.call('DEL', KEYS[1]) else redis.call('SET', KEYS[1], 'F+' .. rest, 'KEEPTTL') end
return found
""")
"""Take a fence down after the commit: the value goes in only if no other writer was there in the meantime."""

FILL_SCRIPT = _script("""
-- KEYS: one key. ARGV: what must begin the key's content, new content or '', milliseconds.
if redis.call('GETRANGE', KEYS[1], 0, #ARGV[1] - 1) ~= ARGV[1] then return 0 end
if ARGV[2] == '' then redis.call('DEL', KEYS[1]) return 1 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
""")
"""Compare and set: a filler's lease, or a stale value's header, must still stand there."""

CLAIM_SCRIPT = _script("""
-- KEYS: one key. ARGV: header that must stand there, header that takes its place.
if redis.call('GETRANGE', KEYS[1], 0, #ARGV[1] - 1) ~= ARGV[1] then return 0 end
redis.call('SETRANGE', KEYS[1], 0, ARGV[2])
return 1
""")
"""Claim the renewal of a stale value: it looks fresh to the others for a moment; its time to live stays."""

TAKE_SCRIPT = _script("""
-- KEYS: one key. ARGV: new lease, milliseconds, how many the old one may have left at most.
if redis.call('GETRANGE', KEYS[1], 0, 0) ~= 'L' or redis.call('PTTL', KEYS[1]) > tonumber(ARGV[3]) then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
""")
"""Take over an old lease: a holder that died is waited for a moment, one that is only slow may still fill till then."""

SCRIPTS = (FENCE_SCRIPT, SETTLE_SCRIPT, FILL_SCRIPT, CLAIM_SCRIPT, TAKE_SCRIPT)


def new_token() -> bytes:
    """Make a token that nobody else has."""
    return secrets.token_bytes(TOKEN_BYTES)


class Lease:
    """The right to fill one key, on the server and in the epoch in which it was taken.

    Attributes:
        content: what it looks like under its key.
        stamp: of the lane that was asked for it; what another server or a later epoch takes for it, is not ours.
    """

    __slots__ = ("content", "stamp")

    def __init__(self, token: bytes) -> None:
        self.content, self.stamp = LEASE + token, b""


def stamp_of(header: bytes) -> bytes:
    """The stamp in a value's header."""
    return bytes(_HEADER.unpack(header)[1])


def pack_header(kind: bytes, stamp: bytes, fresh_until: float) -> bytes:
    """Make the header of a value; its nonce makes it unlike every other."""
    return _HEADER.pack(kind, stamp, secrets.token_bytes(4), fresh_until)


@dataclass(slots=True)
class Found:
    """What a GET found.

    Attributes:
        state: VALUE, NOTHING, LEASE, FENCE; empty bytes: the key does not exist, or what it held does not count.
        payload: of a VALUE.
        fresh_until: of a VALUE or NOTHING, in seconds since 1970; 0 where the stamp is another's: stale in any case.
        header: of a VALUE or NOTHING, to compare and set against.
    """

    state: bytes
    payload: bytes = b""
    fresh_until: float = 0.0
    header: bytes = b""


ABSENT = Found(b"")


def unpack(raw: bytes | None, stamp: bytes) -> Found:
    """Read what stands under a key, on the lane with this stamp."""
    if raw is None:
        return ABSENT
    state = raw[:1]
    if state in (VALUE, NOTHING):
        if len(raw) < HEADER_BYTES:
            return ABSENT
        _, its, _, fresh_until = _HEADER.unpack_from(raw)
        return Found(state, raw[HEADER_BYTES:], fresh_until if its == stamp else 0.0, raw[:HEADER_BYTES])
    return Found(state) if state in (LEASE, FENCE) else ABSENT
