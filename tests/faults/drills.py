"""`python -m tests.faults.drills [--seed S] [--only NAME …] [--no-cases]`: every drill, and those with planted defects.

All 12 incident × tier cases must pass, and every planted defect must end as a failed drill that names it. Puts rows
`recovery.drill` and `recovery.planted` into build/faults.json, beside those of other campaigns.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path

from infra.local import Stack
from tests.faults.drill_defects import DEFECTS, Defect, Planting
from tests.ops.drill_world import DrillWorld, open_drill_world
from tiering.model_drill import DrillReport, Incident
from tiering.ops.drill import run_drill
from tiering.plan.drill_report import codes_of

OUT = Path(__file__).parents[2] / "build" / "faults.json"
CASES = [(tier, incident) for tier in (1, 2, 3) for incident in Incident]
_numbers = count(1)

Say = Callable[[str], None]


def run_case(world: DrillWorld, tier: int, incident: Incident, seed: int) -> DrillReport:
    """Run one drill as it is, on the bucket as it is."""
    return run_drill(world.kit(), tier, incident, seed=seed)


def run_planted(world: DrillWorld, defect: Defect, seed: int) -> DrillReport:
    """Plant one defect in a copy of the bucket, or in the primary, and drill."""
    with ExitStack() as undo:
        if defect.is_primary:
            undo.callback(world.describe)
            plant = Planting(world, world.recovery, undo, lambda kit: kit, {})
            defect.plant(plant)
            world.beat_on(3)
        bucket = undo.enter_context(copied_bucket(world))
        settings = world.recovery.model_copy(update={"backup_bucket": bucket})
        if not defect.is_primary:
            plant = Planting(world, settings, undo, lambda kit: kit, {})
            defect.plant(plant)
        kit = plant.kit(plant.prepared or world.kit_of(settings))
        return run_drill(kit, defect.tier, defect.incident, seed=seed, is_quick=True, **plant.run)


@contextmanager
def copied_bucket(world: DrillWorld) -> Iterator[str]:
    """Copy the backup bucket, so that nothing that is planted stays."""
    client, source = world.stack.s3.client(), world.recovery.backup_bucket
    name = f"planted-{next(_numbers)}-{secrets.token_hex(3)}"
    client.create_bucket(Bucket=name)
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=source):
        for entry in page.get("Contents", ()):
            if not entry["Key"].startswith("lease/"):
                client.copy_object(Bucket=name, Key=entry["Key"], CopySource={"Bucket": source, "Key": entry["Key"]})
    try:
        yield name
    finally:
        client.delete_bucket(Bucket=name)


def judge_planted(defect: Defect, report: DrillReport) -> str:
    """Say why a drill did not find its defect; empty if it did."""
    codes = codes_of(report)
    if report.passed:
        return f"{defect.name}: the drill passed"
    if not set(codes) & set(defect.codes):
        return f"{defect.name}: told {', '.join(codes)}, expected one of {', '.join(defect.codes)}"
    return ""


def main() -> int:
    """Run the campaign; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.drills", description=__doc__)
    parser.add_argument("--seed", type=int, default=None, help="of an earlier campaign")
    parser.add_argument("--only", nargs="+", default=[], help="defects whose names begin so")
    parser.add_argument("--no-cases", action="store_true", help="only planted defects")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    seed = secrets.randbelow(100_000) if arguments.seed is None else arguments.seed
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - began:5.0f} s] {text}", flush=True)

    chosen = [d for d in DEFECTS if not arguments.only or d.name.startswith(tuple(arguments.only))]
    say(f"drills: {0 if arguments.no_cases else len(CASES)} cases, {len(chosen)} planted defects, seed {seed}")
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory(prefix="tiering-drills-") as temporary:
        directory = Path(temporary)
        directory.chmod(0o711)  # PostgreSQL runs as nobody below root
        with Stack(directory / "stack") as stack, open_drill_world(stack) as world:
            world.beat_on(10)
            if not arguments.no_cases:
                rows.append(_cases(world, seed, say))
            rows.append(_planted(world, chosen, seed, say))
    write(arguments.out, rows)
    bad = [row for row in rows if not row["ok"]]
    say(f"drills: {'FAILED' if bad else 'OK'}")
    return 1 if bad else 0


def _cases(world: DrillWorld, seed: int, say: Say) -> dict[str, object]:
    failed, seconds = [], []
    for tier, incident in CASES:
        report = run_case(world, tier, incident, seed)
        took = (report.ended_at - report.began_at).total_seconds()
        seconds += [took] if (tier, incident) == CASES[0] else []
        say(f"tier {tier} {incident}: {'passed' if report.passed else codes_of(report)} in {took:.0f} s")
        if not report.passed:
            failed.append(f"tier {tier} {incident}: {', '.join(codes_of(report))}")
    return {
        "name": "recovery.drill", "seed": seed, "cases": len(CASES), "passed": len(CASES) - len(failed),
        "tier1_seconds": seconds[0], "failed": failed, "ok": not failed,
    }  # fmt: skip


def _planted(world: DrillWorld, defects: Sequence[Defect], seed: int, say: Say) -> dict[str, object]:
    missed = []
    for defect in defects:
        report = run_planted(world, defect, seed)
        problem = judge_planted(defect, report)
        say(f"{defect.name}: {'MISSED: ' + problem if problem else ', '.join(codes_of(report))}")
        missed += [problem] if problem else []
    return {
        "name": "recovery.planted", "seed": seed, "defects": len(defects), "found": len(defects) - len(missed),
        "missed": missed, "ok": not missed,
    }  # fmt: skip


def write(file: Path, rows: Sequence[dict[str, object]]) -> None:
    """Put rows into the file, in the place of those of the same names."""
    known = json.loads(file.read_text()) if file.exists() else []
    names = {row["name"] for row in rows}
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps([*(row for row in known if row["name"] not in names), *rows], indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
