"""The house as DESIGN draws it, proved from the syntax trees: who imports whom, who may destroy, what stays pure.

Every failure names file, line and remedy. To allow an exception, add it below with its reason; one that nothing
needs any more fails too. Below the rules, each is tested itself on a planted violation.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("tiering", "tasks", "flows", "deployments", "infra", "tests")
NOUNS = ("tiering.model", "tiering.model_backup", "tiering.model_drill", "tiering.errors")
ANY = ROOMS

# Room (the longest that matches counts) → what it may import of this project. Arrows point towards model.
ARROWS = {
    "tiering/model.py": (),
    "tiering/model_backup.py": (),
    "tiering/model_drill.py": ("tiering.model_backup",),
    "tiering/errors.py": (),
    "tiering/settings.py": NOUNS,
    "tiering/plan": (*NOUNS, "tiering.plan"),
    "tiering/stores": (*NOUNS, "tiering.stores"),
    "tiering/stores/opening.py": (*NOUNS, "tiering.stores", "tiering.settings"),
    "tiering/ops": (*NOUNS, "tiering.plan", "tiering.stores", "tiering.ops"),
    "tiering/access": (*NOUNS, "tiering.plan", "tiering.stores", "tiering.access", "tiering.settings"),
    # The cold path alone joins tiers through ops (docs/decisions/0016-access-reads-cold-through-ops.md).
    "tiering/access/tickets.py": (
        *NOUNS,
        "tiering.plan",
        "tiering.stores",
        "tiering.access",
        "tiering.settings",
        "tiering.ops.query",
    ),
    "tiering/cli": ("tiering", "infra"),
    "tiering": NOUNS,
    "infra": (*NOUNS, "infra", "tiering.settings", "tiering.stores.scratch"),
    "tasks": ("tiering", "tasks", "infra"),
    "flows": ("tiering.model", "tiering.model_backup", "tiering.model_drill", "tasks", "flows"),
    "deployments": ANY[:-1],
    "tests": ANY,
}
DRIVERS = (
    "psycopg2",
    "asyncpg",
    "redis",
    "hiredis",
    "pymongo",
    "bson",
    "boto3",
    "botocore",
    "pyiceberg",
    "duckdb",
    "sqlalchemy",
)
# Outside module → the rooms that may import it, and what the others do instead.
OUTSIDE = {
    **dict.fromkeys(
        DRIVERS,
        # infra starts the servers and prepares them before there is any store.
        (("tiering/stores", "infra", "tests"), "reach the system through its module under tiering/stores"),
    ),
    # ops compose statements for the store to run: identifiers quoted by the driver, and a name for the type.
    "psycopg2.sql": (
        ("tiering/stores", "tiering/ops", "infra", "deployments/demo", "tests"),
        "compose SQL in stores or ops",
    ),
    "psycopg2.extensions.connection": (("tiering/stores", "tiering/ops", "infra", "tests"), "name the type in ops"),
    "great_expectations": (("tiering/ops/checkpoints.py", "tests"), "judge through tiering/ops/checkpoints.py"),
    "prefect": (("tasks", "flows", "deployments", "tests"), "the library never imports Prefect: wrap it in tasks/"),
    "prefect_dask": (("tasks", "tests"), "choose the task runner in tasks/options.py"),
}
IMPURE = ("time", "random", "secrets", "uuid", "logging", "os", "pathlib", "io", "socket", "subprocess", "threading")
DESTROYERS = ("delete", "drop", "unlink", "rmtree", "rmdir", "remove_table", "drop_table", "delete_object",
              "delete_objects", "delete_one", "delete_many")  # fmt: skip
DESTROYING_SQL = re.compile(r"\b(DELETE\s+FROM|DROP\s+(TABLE|SCHEMA|DATABASE|COLUMN)|TRUNCATE)\b")
FUNCTION_LINES_MAX, FILE_LINES_MAX, TASK_LINES_MAX, TASK_HELPER_LINES_MAX = 70, 500, 10, 20

# An erasure is destruction that was asked for: it has no undo window to wait for.
MAY_DESTROY = ("tiering/ops/sweep.py", "tiering/ops/sweep_backups.py", "tiering/ops/erase", "tiering/stores")

# (rule, file, function) → why it may.
EXCEPTIONS = {
    ("destroys", "tiering/ops/handover.py", "pump_into_stage"): "begins its own unfinished stage table anew",
    **{
        ("destroys", "tiering/ops/rehydrate_documents.py", function): "a read copy: the cold object is what counts"
        for function in ("make", "forget", "sweep_leftovers")
    },
    ("destroys", "tiering/ops/merge.py", "copy"): "begins its own unfinished stage table anew",
    ("destroys", "tiering/ops/merge.py", "_overlay"): "replaces rows in its own stage table; both copies still exist",
    ("destroys", "tiering/ops/backup_lease.py", "keep"): "its own sign of life, behind a newer one",
    ("destroys", "tiering/ops/backup_lease.py", "_free_epoch"): "its own knock, after the answer",
    (
        "destroys",
        "tiering/ops/wal_archive.py",
        "merge",
    ): "log that lies wholly in a longer stretch, read back",
    ("environment", "infra/local/processes.py", "inherited_environment"): "what a started server inherits",
    ("swallows", "flows/lifecycle.py", "_carry_out"): "datasets are independent; the run ends as Failed, naming each",
    ("swallows", "deployments/demo.py", "main"): "prints the traceback and ends with exit code 1",
    ("swallows", "tiering/cli.py", "main"): "_usage_code raises again what it does not know",
    ("swallows", "tiering/stores/pgcopy_read.py", "read_range"): "handed to the reading thread, which raises it",
    ("swallows", "tests/faults/mover.py", "_be_child"): "told to the parent process, which judges it",
}


@dataclass(frozen=True)
class Source:
    """One file: its path from the root, its text, its tree."""

    path: str
    text: str

    @cached_property
    def nodes(self) -> list[ast.AST]:
        return list(ast.walk(ast.parse(self.text)))

    @cached_property
    def functions(self) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
        return [node for node in self.nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]

    def within(self, *rooms: str) -> bool:
        return any(self.path == r or self.path.startswith((f"{r}/", f"{r}.py", f"{r}_")) for r in rooms)

    def function_at(self, line: int) -> str:
        around = [f for f in self.functions if f.lineno <= line <= (f.end_lineno or 0)]
        return max(around, key=lambda f: f.lineno).name if around else ""

    def attributes(self, *names: str) -> Iterator[ast.Attribute]:
        yield from (node for node in self.nodes if isinstance(node, ast.Attribute) and node.attr in names)

    def calls(self, name: str) -> Iterator[int]:
        for node in self.nodes:
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name:
                yield node.lineno

    def imports(self) -> Iterator[tuple[int, str]]:
        for node in self.nodes:
            if isinstance(node, ast.Import):
                yield from ((node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield from ((node.lineno, f"{'.' * node.level}{node.module}.{alias.name}") for alias in node.names)

    def strings(self) -> Iterator[tuple[int, str]]:
        docstrings = {id(_docstring(n)) for n in self.nodes if isinstance(n, ast.Module | ast.ClassDef)}
        docstrings |= {id(_docstring(f)) for f in self.functions}
        for node in self.nodes:
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                yield node.lineno, node.value


Finding = tuple[int, str]
"""Line, and what is wrong with its remedy."""


def _docstring(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> ast.expr | None:
    first = node.body[0] if node.body else None
    is_text = (
        isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    )
    return first.value if is_text else None  # type: ignore[union-attr]


def _length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count the lines of a body; its docstring is free."""
    body = function.body[1:] if _docstring(function) else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def _longest(name: str, known: Iterator[str] | dict[str, object]) -> str | None:
    return max((k for k in known if name == k or name.startswith(f"{k}.")), key=len, default=None)


def arrows(source: Source) -> Iterator[Finding]:
    """Imports point towards model, and drivers stay in their rooms."""
    room = max((r for r in ARROWS if source.within(r)), key=len)
    for line, name in source.imports():
        outside = _longest(name, OUTSIDE)  # type: ignore[arg-type]
        if name.startswith("."):
            yield line, f"relative import of {name}: write the full path, so that arrows can be read"
        elif name.split(".")[0] in ROOMS and not _longest(name, iter(ARROWS[room])):
            yield line, f"{room} may not import {name}, only {', '.join(ARROWS[room]) or 'nothing of the project'}"
        elif outside and not source.within(*OUTSIDE[outside][0]):
            yield line, f"{name} belongs to {', '.join(OUTSIDE[outside][0])}: {OUTSIDE[outside][1]}"


def pure(source: Source) -> Iterator[Finding]:
    """plan/ decides: values in, values out."""
    if not source.within("tiering/plan"):
        return
    for line, name in source.imports():
        if name.split(".")[0] in IMPURE or ".random" in name:
            yield line, f"plan/ is pure and may not import {name}: take the value (`now`, `seed`, text) as an argument"
    for node in source.attributes("now", "utcnow", "today", "random"):
        owner = ast.unparse(node.value)
        if owner.split(".")[-1] in ("datetime", "date", "np", "numpy"):
            yield node.lineno, f"{owner}.{node.attr} under plan/: take `now` or `seed` as an argument"
    for line in source.calls("open"):
        yield line, "open() under plan/: let ops or tasks read the file and hand the text in"


def environment(source: Source) -> Iterator[Finding]:
    """One reader of the environment, so that one file says what can be configured."""
    if source.within("tiering/settings.py", "tests"):
        return
    read = [(n.lineno, f"{ast.unparse(n.value)}.{n.attr}") for n in source.attributes("environ", "getenv", "putenv")]
    for line, name in (*read, *source.imports()):
        if name in ("os.environ", "os.getenv", "os.putenv"):
            yield line, f"{name}: add a field to tiering/settings.py and pass the value on"


def destroys(source: Source) -> Iterator[Finding]:
    """Only the sweep destroys data; stores can, when it asks them."""
    if not source.within("tiering", "tasks", "flows") or source.within(*MAY_DESTROY):
        return
    remedy = "trash it in the commit's transaction (Work.trash) and let ops/sweep.py destroy it after the undo window"
    for node in source.nodes:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in DESTROYERS:
            yield node.lineno, f".{node.func.attr}() outside ops/sweep.py: {remedy}"
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("vault.discard"):
            yield node.lineno, "vault.discard() outside ops/sweep_backups.py: let retention decide, and it do it"
    for line, text in source.strings():
        if found := DESTROYING_SQL.search(text):
            yield line, f"{found[0]} outside ops/sweep.py: {remedy}"


def thin(source: Source) -> Iterator[Finding]:
    """tasks/ and flows/ have no logic of their own to test."""
    if not source.within("tasks", "flows"):
        return
    for node in source.nodes:
        if isinstance(node, ast.ClassDef):
            yield node.lineno, f"class {node.name} in tasks/ or flows/: values belong to tiering/model.py or an op"
    for function in source.functions if source.within("tasks") else ():
        is_task = any(ast.unparse(d).split("(")[0] == "task" for d in function.decorator_list)
        limit = TASK_LINES_MAX if is_task else TASK_HELPER_LINES_MAX
        lines = _length(function)
        if lines > limit:
            yield function.lineno, f"{function.name} has {lines} lines, over {limit}: move the logic to tiering/ops"


def sizes(source: Source) -> Iterator[Finding]:
    """A function fits a screen, a file one sitting."""
    lines = source.text.count("\n")
    if lines > FILE_LINES_MAX:
        yield FILE_LINES_MAX, f"{lines} lines, over {FILE_LINES_MAX}: split it by noun"
    for function in source.functions:
        if (lines := _length(function)) > FUNCTION_LINES_MAX:
            yield function.lineno, f"{function.name} has {lines} lines, over {FUNCTION_LINES_MAX}: name its parts"


def swallows(source: Source) -> Iterator[Finding]:
    """An error is mapped, raised or handled by its name."""
    for node in source.nodes:
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else "everything"
            is_broad = caught in ("everything", "Exception", "BaseException")
            # A thread's error may be handed to the one that waits for it: `.put(exc)`, `.append(exc)`.
            handed = {f"{verb}({node.name})" for verb in ("put", "append", "set_exception")}
            ends = [n for n in ast.walk(node) if isinstance(n, ast.Raise) or ast.unparse(n).split(".")[-1] in handed]
            if is_broad and not ends:
                yield node.lineno, f"swallows {caught}: catch what you expect, or raise again (`raise … from exc`)"


def speaks(source: Source) -> Iterator[Finding]:
    """Results go to the caller and news to the log; only programs print."""
    if source.within("tiering/cli", "deployments", "tests"):
        return
    # `python -m` on a module of the library makes it a program for that one block.
    mains = [n for n in source.nodes if isinstance(n, ast.If) and ast.unparse(n.test) == "__name__ == '__main__'"]
    for line in source.calls("print"):
        if not any(block.lineno <= line <= (block.end_lineno or 0) for block in mains):
            yield line, "print(): return it, log it, or print in the command line's module"


def honest(source: Source) -> Iterator[Finding]:
    """Tests meet real implementations: a port has one for every system, and a directory for tests."""
    for line, name in source.imports():
        if "mock" in name.split(".") or name.split(".")[-1] in ("Mock", "MagicMock", "AsyncMock"):
            yield line, f"{name}: use a real server (the `stack` fixture), a directory store or a fault proxy"
    for node in source.attributes("setattr", "patch"):
        if ast.unparse(node.value) in ("monkeypatch", "mocker", "mock"):
            yield node.lineno, f"{ast.unparse(node)}: pass the behaviour in as an argument, or break a real server"


def explains(source: Source) -> Iterator[Finding]:
    """Every module says what it is, every public name of the library what it does."""
    module = source.nodes[0]
    if source.text.strip() and isinstance(module, ast.Module) and not _docstring(module):
        yield 1, 'no module docstring: say in a line what it is and what it does not ("""…""")'
    if not source.within("tiering"):
        return
    owners = [n for n in source.nodes if isinstance(n, ast.Module | ast.ClassDef)]
    owners = [n for n in owners if isinstance(n, ast.Module) or not n.name.startswith("_")]
    for node in (inner for owner in owners for inner in owner.body):
        is_named = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        if is_named and not node.name.startswith("_") and not _docstring(node):
            yield node.lineno, f"{node.name} has no docstring: what it does, in the imperative, and what it raises"


RULES: tuple[Callable[[Source], Iterator[Finding]], ...] = (
    arrows, pure, environment, destroys, thin, sizes, swallows, speaks, honest, explains,
)  # fmt: skip


@cache
def sources() -> tuple[Source, ...]:
    files = [file for room in ROOMS for file in sorted((ROOT / room).rglob("*.py"))]
    return tuple(Source(file.relative_to(ROOT).as_posix(), file.read_text(encoding="utf-8")) for file in files)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_keeps(rule: Callable[[Source], Iterator[Finding]]) -> None:
    found = [(source, *finding) for source in sources() for finding in rule(source)]
    excused = {(rule.__name__, source.path, source.function_at(line)) for source, line, _ in found}
    broken = [
        f"{source.path}:{line}: {text}"
        for source, line, text in found
        if (rule.__name__, source.path, source.function_at(line)) not in EXCEPTIONS
    ]
    unused = [key for key in EXCEPTIONS if key[0] == rule.__name__ and key not in excused]
    assert not broken, f"{rule.__doc__}\n" + "\n".join(broken)
    assert not unused, f"nothing needs these any more; take them out of EXCEPTIONS: {unused}"


def test_links_in_the_documents_lead_somewhere() -> None:
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    broken = [
        f"{document.relative_to(ROOT)}: {link}: correct the link or write the page"
        for document in documents
        for link in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", document.read_text(encoding="utf-8"))
        if not (document.parent / link).exists()
    ]
    assert documents
    assert not broken, "\n".join(broken)


PLANTED = [
    (arrows, "tiering/plan/a.py", "from tiering.stores import tables"),
    (arrows, "tiering/stores/a.py", "from tiering.plan.spans import due"),
    (arrows, "tiering/stores/a.py", "from tiering.settings import Settings"),
    (arrows, "tiering/ops/a.py", "import psycopg2"),
    (arrows, "tiering/ops/a.py", "from psycopg2.extensions import cursor"),
    (arrows, "tiering/ops/a.py", "def f():\n    import great_expectations as gx"),
    (arrows, "tiering/ops/a.py", "import infra.sql"),
    (arrows, "tiering/ops/a.py", "from . import work"),
    (arrows, "tiering/cli_moves.py", "from prefect import flow"),
    (arrows, "flows/a.py", "from tiering.ops import lifecycle"),
    (arrows, "flows/a.py", "import infra.local"),
    (pure, "tiering/plan/a.py", "from datetime import datetime\nx = datetime.now()"),
    (pure, "tiering/plan/a.py", "import time"),
    (pure, "tiering/plan/a.py", "from random import random"),
    (pure, "tiering/plan/a.py", "x = open('f')"),
    (environment, "tiering/ops/a.py", "import os\nx = os.environ['HOME']"),
    (environment, "tasks/a.py", "from os import getenv"),
    (destroys, "tiering/ops/a.py", "store.delete(keys)"),
    (destroys, "tiering/ops/handover.py", "def copy():\n    tables.drop(c, t)"),
    (destroys, "tiering/ops/a.py", "catalogue.vault.discard(names)"),
    (destroys, "tiering/access/a.py", 'q = f"DELETE FROM {t}"'),
    (thin, "tasks/a.py", "class A: pass"),
    (thin, "tasks/a.py", "@task(name='a')\ndef a():\n    '''Do.'''\n" + "    x = 1\n" * 11),
    (sizes, "tests/a.py", "def f():\n" + "    x = 1\n" * 71),
    (sizes, "tests/a.py", "x = 1\n" * 501),
    (swallows, "tiering/a.py", "try:\n    f()\nexcept Exception:\n    pass"),
    (swallows, "tests/a.py", "try:\n    f()\nexcept:\n    pass"),
    (swallows, "tests/a.py", "try:\n    f()\nexcept Exception as exc:\n    log.warning(exc)"),
    (speaks, "tiering/ops/a.py", "print(1)"),
    (honest, "tests/a.py", "from unittest import mock"),
    (honest, "tests/a.py", "def test(monkeypatch):\n    monkeypatch.setattr(a, 'b', c)"),
    (explains, "infra/a.py", "x = 1"),
    (explains, "tiering/a.py", "'''A.'''\nclass A:\n    '''A.'''\n    def f(self): pass"),
]
ALLOWED = [
    ("tiering/ops/a.py", "'''A.'''\nfrom psycopg2 import sql\nfrom psycopg2.extensions import connection as C"),
    ("tiering/ops/a.py", "'''Says DROP TABLE only in prose.'''\nx = 'ON UPDATE OR DELETE OR'"),
    ("tiering/plan/a.py", "'''A.'''\nfrom datetime import datetime\nx = datetime(1970, 1, 1)"),
    ("tiering/stores/a.py", "'''A.'''\ntry:\n    f()\nexcept Exception as exc:\n    raise Mapped() from exc"),
    ("tests/a.py", "'''A.'''\ntry:\n    f()\nexcept Exception as exc:\n    found.append(exc)"),
    ("tests/a.py", "'''A.'''\nimport boto3, os\nprint(os.environ)"),
]


@pytest.mark.parametrize(("rule", "path", "text"), PLANTED)
def test_a_planted_violation_is_found(rule: Callable[[Source], Iterator[Finding]], path: str, text: str) -> None:
    found = list(rule(Source(path, text)))
    assert found
    assert all((rule.__name__, path, Source(path, text).function_at(line)) not in EXCEPTIONS for line, _ in found)


@pytest.mark.parametrize(("path", "text"), ALLOWED)
def test_what_is_allowed_is_not_found(path: str, text: str) -> None:
    assert [finding for rule in RULES for finding in rule(Source(path, text))] == []
