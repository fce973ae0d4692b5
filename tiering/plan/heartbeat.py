"""The heartbeat ledger: a chain of one row per second, written to every store, and what a restored piece of it says.

    digest(n) = sha256(digest(n-1) || "chain seq time")

One question answers three: how far a restore reaches (the last beat), whether it is exact (nothing after the target),
and whether it is sound (the chain is unbroken). The same beat in all stores is their common recovery point.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime

from tiering.model_drill import Beat, ChainVerdict

GENESIS = "0" * 64


def first_beat(chain: str, at: datetime) -> Beat:
    """Begin a chain."""
    return Beat(chain, 1, at, _digest(GENESIS, chain, 1, at))


def next_beat(previous: Beat, at: datetime) -> Beat:
    """Make the beat after `previous`; its time never goes back, whatever the clock does."""
    at = max(at, previous.at)
    return Beat(previous.chain, previous.seq + 1, at, _digest(previous.digest, previous.chain, previous.seq + 1, at))


def judge_chain(store: str, beats: Sequence[Beat]) -> ChainVerdict:
    """Walk the beats of one store, oldest first; only the chain of the newest beat counts.

    The oldest beat is taken as it is, since those before it are forgotten by and by; a chain from its first beat on is
    checked whole.
    """
    if not beats:
        return ChainVerdict(store, None, None, "there is no heartbeat")
    newest = beats[-1].chain
    own = sorted((beat for beat in beats if beat.chain == newest), key=lambda beat: beat.seq)
    previous = own[0]
    if previous.seq == 1 and previous.digest != _digest(GENESIS, newest, 1, previous.at):
        return ChainVerdict(store, own[0], None, "the first beat is not what was written")
    for beat in own[1:]:
        if beat.seq == previous.seq:
            return ChainVerdict(store, own[0], previous, f"beat {beat.seq} is there twice")
        if beat.seq != previous.seq + 1:
            missing = f"{previous.seq + 1}" if beat.seq == previous.seq + 2 else f"{previous.seq + 1} to {beat.seq - 1}"
            return ChainVerdict(store, own[0], previous, f"beats {missing} are missing, later ones are there")
        if beat.digest != _digest(previous.digest, newest, beat.seq, beat.at):
            return ChainVerdict(store, own[0], previous, f"beat {beat.seq} does not follow from the one before")
        previous = beat
    return ChainVerdict(store, own[0], previous)


def common_beat(chains: Mapping[str, Sequence[Beat]]) -> tuple[Beat | None, str]:
    """Find the newest beat that every store has, and say why two stores cannot be of one history, if so."""
    if not chains or not all(chains.values()):
        return None, "a store has no heartbeat"
    by_store = {store: {(beat.chain, beat.seq): beat for beat in beats} for store, beats in chains.items()}
    stores = list(by_store)
    shared = set.intersection(*(set(beats) for beats in by_store.values()))
    for place in sorted(shared):
        digests = {store: by_store[store][place].digest for store in stores}
        if len(set(digests.values())) > 1:
            return None, f"beat {place[1]} is not the same in {' and '.join(stores)}"
    if not shared:
        return None, f"{' and '.join(stores)} share no beat"
    newest = max((by_store[stores[0]][place] for place in shared), key=lambda beat: (beat.at, beat.seq))
    return newest, ""


def continue_from(ledgers: Mapping[str, Sequence[Beat]]) -> tuple[Beat | None, dict[str, list[Beat]], str]:
    """Decide how a daemon goes on after a pause: from which beat, and what each store still lacks.

    Returns:
        The newest beat of all; what to write to each store first, in order; and why it must not go on, if so: stores
        that disagree about the past must not be papered over with new beats.
    """
    every: dict[tuple[str, int], Beat] = {}
    for store, beats in ledgers.items():
        for beat in beats:
            known = every.setdefault((beat.chain, beat.seq), beat)
            if known.digest != beat.digest:
                return None, {}, f"beat {beat.seq} in {store} is not the one that another store has"
    if not every:
        return None, {store: [] for store in ledgers}, ""
    newest = max(every.values(), key=lambda beat: (beat.at, beat.seq))
    missing: dict[str, list[Beat]] = {}
    for store, beats in ledgers.items():
        last = max((beat.seq for beat in beats if beat.chain == newest.chain), default=0)
        later = [beat for (chain, seq), beat in every.items() if chain == newest.chain and seq > last]
        missing[store] = sorted(later, key=lambda beat: beat.seq)
    return newest, missing, ""


def _digest(previous: str, chain: str, seq: int, at: datetime) -> str:
    payload = f"{chain} {seq} {at.isoformat(timespec='milliseconds')}"
    return hashlib.sha256(bytes.fromhex(previous) + payload.encode()).hexdigest()
