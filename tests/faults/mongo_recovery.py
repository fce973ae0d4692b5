"""`python -m tests.faults.mongo_recovery [--targets N] [--kills N]`: recovery of MongoDB; adds to build/faults.json.

Rows: `recovery.mongo.pitr` (positions restored, both sides of each compared) and `recovery.mongo.rpo` (servers killed
and deleted; seconds of acknowledged writes that were lost).
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import tempfile
import time
from base64 import b64encode
from pathlib import Path

from pydantic import SecretStr

from infra.local import Stack
from infra.local.s3 import BUCKETS, REGION
from tests.faults import mongo_pitr, mongo_rpo
from tests.faults.rows import OUT, merge
from tiering.ops.catalogue import Catalogue
from tiering.stores.objects import S3Objects
from tiering.stores.vault import Keyring, Vault

CHANGES_PER_ROUND, TARGETS_PER_ROUND, FULL_PER_ROUND = 200, 100, 3
RPO_SECONDS_MAX = 5.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.mongo_recovery", description=__doc__)
    parser.add_argument("--targets", type=int, default=200, help="positions to restore to (default 200)")
    parser.add_argument("--kills", type=int, default=100, help="servers to kill (default 100)")
    parser.add_argument("--seed", type=int, default=None, help="of an earlier campaign, to repeat its choices")
    parser.add_argument("--out", type=Path, default=OUT, help="where the numbers go")
    arguments = parser.parse_args()
    seed = secrets.randbelow(100_000) if arguments.seed is None else arguments.seed
    rows = []
    with tempfile.TemporaryDirectory(prefix="tiering-mongo-recovery-") as temporary:
        directory = Path(temporary)
        directory.chmod(0o711)
        if arguments.targets:
            rows.append(pitr(directory, seed, arguments.targets))
        if arguments.kills:
            rows.append(rpo(directory, seed, arguments.kills))
    for row in rows:
        print(json.dumps(row), flush=True)
    merge(arguments.out, rows)
    return 0 if all(row["ok"] for row in rows) else 1


def pitr(directory: Path, seed: int, targets: int) -> dict[str, object]:
    """Restore to random positions, in rounds, each with a server and a backup of its own."""
    began, done, full, wrong = time.monotonic(), 0, 0, []
    while done < targets:
        place = directory / f"pitr{done}"
        place.mkdir()
        with (
            Stack(place / "s3", {"s3"}) as bucket,
            Stack(place / "a", {"mongo"}) as a,
            Stack(place / "b", {"mongo"}) as b,
        ):
            catalogue = catalogue_of(bucket)
            backup, moments = mongo_pitr.record(catalogue, a, seed + done, CHANGES_PER_ROUND)
            count = min(TARGETS_PER_ROUND, targets - done)
            outcome = mongo_pitr.check(catalogue, backup, moments, b, seed + done, count, FULL_PER_ROUND)
        done, full = done + outcome.targets, full + outcome.full_restores
        wrong += outcome.wrong
        print(f"{done} of {targets} positions, {full} restores from scratch, {len(wrong)} wrong", flush=True)
    for problem in wrong[:20]:
        print(f"WRONG {problem}", flush=True)
    numbers = {"targets": done, "sides": 2 * done, "full_restores": full, "wrong": len(wrong)}
    return {"name": "recovery.mongo.pitr", "seed": seed, **numbers, **ended(began), "ok": not wrong}


def rpo(directory: Path, seed: int, kills: int) -> dict[str, object]:
    """Kill and delete servers under load."""
    began = time.monotonic()
    with Stack(directory / "rpo-s3", {"s3"}) as bucket:
        losses = mongo_rpo.run(catalogue_of(bucket), directory, seed, kills)
    for problem in losses.wrong[:20]:
        print(f"WRONG {problem}", flush=True)
    worst = max(losses.seconds)
    numbers = {
        "kills": losses.kills,
        "acknowledged": losses.acknowledged,
        "lost_writes": losses.lost,
        "rpo_p50_s": round(losses.percentile(0.5), 2),
        "rpo_p99_s": round(losses.percentile(0.99), 2),
        "rpo_max_s": round(worst, 2),
        "wrong": len(losses.wrong),
    }
    is_ok = worst <= RPO_SECONDS_MAX and not losses.wrong
    return {"name": "recovery.mongo.rpo", "seed": seed, **numbers, **ended(began), "ok": is_ok}


def catalogue_of(stack: Stack) -> Catalogue:
    """Open a catalogue in a stack's bucket."""
    access, secret = (SecretStr(word) for word in stack.s3.credentials)
    objects = S3Objects(stack.s3.url, BUCKETS[1], access, secret, REGION)
    return Catalogue(Vault(objects, Keyring(SecretStr(b64encode(secrets.token_bytes(32)).decode()))))


def ended(began: float) -> dict[str, object]:
    """Say how long it took."""
    return {"seconds": round(time.monotonic() - began)}


if __name__ == "__main__":
    sys.exit(main())
