"""`python -m tests.faults [--kills N] [--seed S] [--sample] …`: the campaign; writes build/faults.json.

Ends with success when the kills were made, nothing was lost, doubled or changed, and, unless it is a sample, a mover
has died before and after every kind of store call that any run showed.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from infra.local import Stack
from tests.faults.campaign import ROUND_KILLS, Campaign, Tally
from tests.faults.grounds import GROUNDS, warm_up

OUT = Path(__file__).parents[2] / "build" / "faults.json"
SAMPLE_OUTAGES = 2
NUMBERS = ("kills", "lost", "doubled", "changed", "broken", "outages")


def main() -> int:
    works = sorted({str(work) for ground in GROUNDS for work in ground.works})
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=1000, help="processes to kill at least (default 1000)")
    parser.add_argument("--seed", type=int, default=None, help="of an earlier campaign, to repeat its choices")
    parser.add_argument("--sample", action="store_true", help="end with the kills, whatever was not struck by then")
    parser.add_argument("--transition", default="", choices=["", *works], help="kill only in this one")
    modes = [ground.mode for ground in GROUNDS]
    parser.add_argument("--ground", action="append", choices=modes, help="only on this one; may be repeated")
    parser.add_argument("--round-kills", type=int, default=ROUND_KILLS, help="kills on one fresh ground")
    parser.add_argument("--out", type=Path, default=OUT, help="where the numbers go")
    parser.add_argument("--verbose", action="store_true", help="tell of every mover")
    arguments = parser.parse_args()
    seed = secrets.randbelow(100_000) if arguments.seed is None else arguments.seed
    say(f"faults: {arguments.kills} kills, seed {seed}")
    named = arguments.ground or []
    grounds = [replace(g, share=1.0) if named else g for g in GROUNDS if not named or g.mode in named]
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tiering-faults-") as temporary:
        directory = Path(temporary)
        directory.chmod(0o711)  # PostgreSQL runs as nobody below root
        with Stack(directory / "stack", services={"postgres", "s3", "mongo"}) as stack:
            warm_up(stack, directory, seed)
            say(f"servers up and code warm after {time.monotonic() - began:.0f} s")
            campaign = Campaign(stack, directory, seed, grounds, arguments.transition, not arguments.sample)
            if arguments.sample:
                campaign.outages_max = SAMPLE_OUTAGES
            campaign.say, campaign.tell = say, say if arguments.verbose else None
            campaign.run(arguments.kills, round_kills=arguments.round_kills)
    report(campaign, arguments.out, time.monotonic() - began)
    return 1 if campaign.problems else 0


def report(campaign: Campaign, out: Path, seconds: float) -> None:
    """Print the table and write the file."""
    total, rows, coverage = campaign.total(), [], campaign.coverage
    say(f"{'transition':<14}{'kinds':>11}" + "".join(f"{name:>9}" for name in NUMBERS))
    for work in sorted({work for _, work in campaign.tallies}):
        tally = campaign.total(work=work)
        known = [kind for kind in coverage.occurrences if kind.work == work]
        struck = sum(1 for kind in known if coverage.struck[kind])
        numbers = [getattr(tally, name) for name in NUMBERS]
        say(f"{work or 'at rest':<14}{f'{struck} of {len(known)}':>11}" + "".join(f"{n:>9}" for n in numbers))
        if work:
            rows.append(row(f"lifecycle.kill.{work}", campaign.seed, tally, len(known), struck))
    for mode in sorted({mode for mode, _ in campaign.tallies}):
        known = [kind for kind in coverage.occurrences if kind.mode == mode]
        struck = sum(1 for kind in known if coverage.struck[kind])
        rows.append(row(f"lifecycle.kill.{mode}", campaign.seed, campaign.total(mode=mode), len(known), struck))
    known_count, struck_count = len(coverage.occurrences), len(coverage.occurrences) - len(coverage.missing)
    rows.append(row("lifecycle.kill", campaign.seed, total, known_count, struck_count))
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(rows, indent=1) + "\n")
    for message, count in campaign.errors.most_common(5):
        say(f"writers met {count} × {message}")
    for problem in campaign.problems:
        say(f"PROBLEM {problem}")
    say(
        f"faults: {total.kills} kills, {struck_count} of {known_count} kinds struck, {total.outages} outages, "
        f"{total.lost} lost, {total.doubled} doubled, {total.changed} changed; seed {campaign.seed}; {seconds:.0f} s"
    )


def row(name: str, seed: int, tally: Tally, kinds: int, kinds_struck: int) -> dict[str, object]:
    numbers = {key: getattr(tally, key) for key in ("kills", "lost", "doubled", "changed")}
    return {"name": name, "seed": seed, **numbers, "kinds": kinds, "kinds_struck": kinds_struck}


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
