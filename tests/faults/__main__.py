"""`python -m tests.faults [--kills N] [--seed S] [--transition …]`: the whole campaign; writes build/faults.json."""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import tempfile
import time
from pathlib import Path

from infra.local import Stack
from tests.faults.campaign import ROUND_KILLS, WORKS, Campaign, Tally, warm_up

OUT = Path(__file__).parents[2] / "build" / "faults.json"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=500, help="processes to kill (default 500)")
    parser.add_argument("--seed", type=int, default=None, help="of an earlier campaign, to repeat its choices")
    parser.add_argument("--transition", default="", choices=["", *map(str, WORKS)], help="kill only in this one")
    parser.add_argument("--round-kills", type=int, default=ROUND_KILLS, help="kills on one fresh ground")
    parser.add_argument("--out", type=Path, default=OUT, help="where the numbers go")
    arguments = parser.parse_args()
    seed = secrets.randbelow(100_000) if arguments.seed is None else arguments.seed
    say(f"faults: {arguments.kills} kills, seed {seed}")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tiering-faults-") as temporary:
        directory = Path(temporary)
        directory.chmod(0o711)  # PostgreSQL runs as nobody below root
        with Stack(directory / "stack", services={"postgres", "s3"}) as stack:
            warm_up(stack, directory, seed)
            say(f"servers up and code warm after {time.monotonic() - began:.0f} s")
            campaign = Campaign(stack, directory, seed, arguments.transition, say)
            campaign.run(arguments.kills, round_kills=arguments.round_kills)
    report(campaign, arguments.out, time.monotonic() - began)
    return 1 if campaign.problems else 0


def report(campaign: Campaign, out: Path, seconds: float) -> None:
    """Print the table and write the file."""
    total = Tally()
    rows = []
    say(f"{'transition':<14}{'kills':>7}{'lost':>7}{'doubled':>9}{'changed':>9}{'broken':>8}{'outages':>9}")
    for work, tally in campaign.tallies.items():
        numbers = (tally.kills, tally.lost, tally.doubled, tally.changed, tally.broken, tally.outages)
        say(f"{work or 'at rest':<14}" + "".join(f"{n:>{w}}" for n, w in zip(numbers, (7, 7, 9, 9, 8, 9), strict=True)))
        for name in ("kills", "lost", "doubled", "changed", "broken", "outages"):
            setattr(total, name, getattr(total, name) + getattr(tally, name))
        if work:
            rows.append(row(f"lifecycle.kill.{work}", campaign.seed, tally))
    rows.append(row("lifecycle.kill", campaign.seed, total))
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(rows, indent=1) + "\n")
    points = sum(2 * len(set(calls)) for calls in campaign.points.values())
    say(f"store calls struck (call, before or after): {len(campaign.struck)} kinds; known {points} in both modes")
    for message, count in campaign.errors.most_common(5):
        say(f"writers met {count} × {message}")
    for problem in campaign.problems:
        say(f"PROBLEM {problem}")
    say(
        f"faults: {total.kills} kills, {total.outages} outages, {total.lost} lost, {total.doubled} doubled, "
        f"{total.changed} changed; seed {campaign.seed}; {seconds:.0f} s"
    )


def row(name: str, seed: int, tally: Tally) -> dict[str, object]:
    return {
        "name": name,
        "seed": seed,
        "kills": tally.kills,
        "lost": tally.lost,
        "doubled": tally.doubled,
        "changed": tally.changed,
    }


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
