"""`python -m tests.faults.all [--n N] [--only NAME …]`: every fault campaign, one by one; writes build/faults.json.

A campaign that fails leaves its rows, and the others are run all the same; the exit code says that one did. Without
`--n` each does what its issue asks for; with it, as large a part of that as N is of the 1,000 kills of the first one.
"""

from __future__ import annotations

import argparse
import ast
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.faults.drill_defects import DEFECTS
from tests.faults.rows import OUT, merge, read

KILLS = 1000
ROOT = Path(__file__).parents[2]
Arguments = Callable[[float], Sequence[str]]


@dataclass(frozen=True)
class Campaign:
    """One campaign, run as a process of its own.

    Attributes:
        name: of its rows, or what these begin with.
        module: that is run.
        arguments: for a share of the whole.
        writes: it takes --seed and --out, and writes rows itself.
    """

    name: str
    module: str
    arguments: Arguments
    writes: bool = True


def part(flag: str, whole: int, least: int = 1) -> Arguments:
    """Scale a number by the share, for one flag."""
    return lambda share: [flag, str(scaled(whole, share, least))]


def scaled(whole: int, share: float, least: int = 1) -> int:
    """Take the share of a number."""
    return max(least, round(whole * share))


def drills(share: float) -> list[str]:
    """All cases and defects; of a small campaign some defects only."""
    if share >= 1:
        return []
    names = [defect.name for defect in DEFECTS]
    return ["--no-cases", "--only", *names[: scaled(len(names), share)]]


CAMPAIGNS = (
    Campaign(
        "lifecycle.kill", "tests.faults", lambda s: [*part("--kills", KILLS)(s), *(["--sample"] if s < 1 else [])]
    ),
    Campaign(
        "recovery.postgres.rpo",
        "tests.faults.postgres_recovery",
        lambda s: ["--targets", "0", *part("--kills", 100)(s), *part("--sync-kills", 30)(s)],
    ),
    Campaign(
        "recovery.postgres.pitr",
        "tests.faults.postgres_recovery",
        lambda s: [*part("--targets", 300, 5)(s), "--kills", "0", "--sync-kills", "0"],
    ),
    Campaign(
        "recovery.mongo",
        "tests.faults.mongo_recovery",
        lambda s: [*part("--targets", 200, 5)(s), *part("--kills", 100)(s)],
    ),
    Campaign(
        "recovery.rot", "tests.faults.rot", lambda s: [*part("--flips", 2000, 50)(s), *part("--restores", 30, 5)(s)]
    ),
    Campaign("recovery.faults", "tests.faults.backup_faults", lambda s: []),
    Campaign("recovery.drill", "tests.faults.drills", drills),
    Campaign("recovery.retention", "tests.plan.test_retention", lambda s: [str(scaled(20_000, s, 100))], writes=False),
)


def main() -> int:
    """Run the campaigns; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.all", description=__doc__)
    parser.add_argument("--n", type=int, default=KILLS, help="kills of movers; all else in proportion (default 1000)")
    names = [campaign.name for campaign in CAMPAIGNS]
    parser.add_argument("--only", nargs="+", default=names, choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--seed", type=int, default=None, help="of an earlier run, to repeat its choices")
    parser.add_argument("--out", type=Path, default=OUT, help="where the numbers go")
    arguments = parser.parse_args()
    seed = secrets.randbelow(100_000) if arguments.seed is None else arguments.seed
    chosen = [campaign for campaign in CAMPAIGNS if campaign.name in arguments.only]
    failed = []
    for number, campaign in enumerate(chosen, 1):
        say(f"== {number} of {len(chosen)}: {campaign.name}, seed {seed}")
        began = time.monotonic()
        code = run(campaign, arguments.n / KILLS, seed, arguments.out)
        say(f"== {campaign.name}: {'FAILED' if code else 'good'} after {time.monotonic() - began:.0f} s")
        failed += [campaign.name] if code else []
    for row in read(arguments.out):
        say(f"   {row}")
    say(f"faults: {len(chosen)} campaigns, failed: {', '.join(failed) or 'none'}; seed {seed}; {arguments.out}")
    return 1 if failed else 0


def run(campaign: Campaign, share: float, seed: int, out: Path) -> int:
    """Run one campaign and put its rows into the file; return its exit code, 1 too where it left no row."""
    command = [sys.executable, "-m", campaign.module, *campaign.arguments(share)]
    if not campaign.writes:
        return run_retention(campaign.name, [*command, str(seed)], seed, out)
    with tempfile.TemporaryDirectory(prefix="tiering-rows-") as private:
        rows = Path(private) / "faults.json"
        code = subprocess.run([*command, "--seed", str(seed), "--out", str(rows)], cwd=ROOT, check=False).returncode
        found = read(rows)
    if not found:
        found = [
            {"name": campaign.name, "seed": seed, "ok": False, "problem": f"it ended with code {code}, without a row"}
        ]
        code = code or 1
    merge(out, found)
    return code


def run_retention(name: str, command: Sequence[str], seed: int, out: Path) -> int:
    """Run the histories, which print what they saw, and make the row of it."""
    done = subprocess.run(command, cwd=ROOT, check=False, stdout=subprocess.PIPE, text=True)
    say(done.stdout.rstrip())
    seen = ast.literal_eval(done.stdout.splitlines()[-1]) if done.returncode == 0 else {}
    merge(out, [{"name": name, "seed": seed, **seen, "ok": done.returncode == 0}])
    return done.returncode


def say(text: str) -> None:
    """Print at once: campaigns print between."""
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
