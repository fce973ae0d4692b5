"""Read the policy file: text in, a valid `Policies` out, or a PolicyError naming file, key and rule.

Nothing downstream checks a policy again, so everything that can be wrong is refused here.
Does not: open the file, or look whether its tables exist.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace

import yaml

from tiering.errors import PolicyError
from tiering.model import (
    Dataset,
    Field,
    Importance,
    Kind,
    Placement,
    Policies,
    Policy,
    Prices,
    Span,
    StorageClass,
)
from tiering.plan import backups, checks, drills
from tiering.plan.spans import never_longer, parse_span, unit_problem

CLASSES = ("market_data", "news_data", "social_data", "analysis_results", "user_data", "audit_logs")
STAGES = ("hot_to_warm", "warm_to_cold", "compression", "retention")
"""As the owner writes them, also in the short form `7d/2y/7d/10y`."""

IN_TIME_ORDER = ("hot_to_warm", "compression", "warm_to_cold", "retention")
STORES = ("postgresql", "mongodb", "s3")
STATES = ("moves", "state", "declared")
SECTIONS = ("datasets", "sweep", "prices", "placement", backups.SECTION, drills.SECTION)
PRICED = ("hot", "warm", *StorageClass)
SWEEP = ("undo_window", "grace")
REQUIRED = ("class", "time_column", "key", "unit")
OPTIONAL = (
    *("hot", "warm", "fingerprint", "suite", "sort", "overrides", "state"),
    *("fields", "subject", "lock", "importance", "storage", "prefix", "wait_for_backup"),
)
_IMPORTANCES = tuple(str(importance) for importance in Importance)
FIELD_KINDS = {
    "text": Kind.TEXT,
    "double": Kind.FLOAT8,
    "long": Kind.INT8,
    "bool": Kind.BOOL,
    "date": Kind.TIMESTAMPTZ,
    "uuid": Kind.UUID,
    "json": Kind.EXACT_TEXT,
}
"""Types of a document's declared fields, by the names that MongoDB's users know."""

NEVER = ("–", "—", "-", "", "none", "never")

NAME_LENGTH_MAX = 40
"""PostgreSQL cuts names at 63 bytes; a dataset's partitions and stages add up to 23 to its name."""

_DATASET_NAME = re.compile(r"[a-z][a-z0-9_]*")
_COLUMN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
_DEPTH_MAX = 6


@dataclass(frozen=True)
class _At:
    """A place in the file: says where when it refuses."""

    file: str
    path: str = ""

    def __truediv__(self, key: object) -> _At:
        return _At(self.file, f"{self.path}.{key}" if self.path else str(key))

    def refuse(self, rule: str, hint: str = "") -> PolicyError:
        return PolicyError("check policies", f"{self.file}: {self.path or 'document'}", rule, hint)


def parse_policies(text: str, file: str) -> Policies:
    """Read and check a whole policy file.

    Args:
        text: its content, YAML.
        file: its name, for messages only.

    Raises:
        PolicyError: the first rule that is broken, with file, key path and remedy.
    """
    at = _At(file)
    document = _mapping(_load(text, at), at, (*CLASSES, *SECTIONS))
    classes = {name: _policy(name, document[name], at / name) for name in CLASSES if name in document}
    datasets = document.get("datasets") or {}
    if not isinstance(datasets, dict):
        raise (at / "datasets").refuse("must be a mapping of dataset names")
    if backups.SECTION in document:
        backups.read_strategy(document[backups.SECTION], file)
    if drills.SECTION in document:
        drills.read_objectives(document[drills.SECTION], file)
    sweep = _mapping(document.get("sweep") or {}, at / "sweep", SWEEP)
    windows = {name: _span(sweep.get(name, "1d"), at / "sweep" / name) for name in SWEEP}
    found = Policies(
        classes=tuple(classes.values()),
        datasets=tuple(_dataset(name, body, classes, at / "datasets" / name) for name, body in datasets.items()),
        undo_window=windows["undo_window"],
        grace=windows["grace"],
        version="",
        prices=_prices(document.get("prices") or {}, at / "prices"),
        placement=_placement(document.get("placement") or {}, at / "placement"),
    )
    return replace(found, version=_version(found))


def _policy(name: str, body: object, at: _At) -> Policy:
    if isinstance(body, str):
        parts = [part.strip() for part in body.split("/")]
        if len(parts) != len(STAGES):
            raise at.refuse(f"the short form has {len(STAGES)} parts: {'/'.join(STAGES)}", "For example 7d/2y/–/10y.")
        body = dict(zip(STAGES, parts, strict=True))
    ages = _ages(_mapping(body, at, STAGES), at)
    policy = Policy(
        name=name,
        hot_to_warm=ages.get("hot_to_warm"),
        warm_to_cold=ages.get("warm_to_cold"),
        compression=ages.get("compression"),
        retention=ages.get("retention"),
    )
    _check_stages(policy, at)
    return policy


def _ages(body: dict[str, object], at: _At) -> dict[str, Span | None]:
    ages: dict[str, Span | None] = {}
    for stage, value in body.items():
        never = value is None or (isinstance(value, str) and value.strip().lower() in NEVER)
        ages[stage] = None if never else _span(value, at / stage)
        if ages[stage] == Span():
            raise (at / stage).refuse("a stage cannot come at age nothing", "Write – for a stage that never comes.")
    return ages


def _check_stages(policy: Policy, at: _At) -> None:
    if policy.retention is None:
        raise (at / "retention").refuse("missing: every class says how long it is kept", "For example retention: 10y.")
    present = [(stage, age) for stage in IN_TIME_ORDER if (age := getattr(policy, stage)) is not None]
    for (early, one), (late, other) in zip(present, present[1:], strict=False):
        if not never_longer(one, other):
            raise (at / late).refuse(
                f"stages out of order: {late} ({other}) comes before {early} ({one})",
                f"Order: {' ≤ '.join(IN_TIME_ORDER)}, in every month of the year.",
            )


def _dataset(name: object, body: object, classes: dict[str, Policy], at: _At) -> Dataset:
    if not isinstance(name, str) or not _DATASET_NAME.fullmatch(name) or len(name) > NAME_LENGTH_MAX:
        raise at.refuse(f"bad dataset name: a-z, 0-9 and _, from a letter, {NAME_LENGTH_MAX} characters at most")
    fields = _mapping(body, at, (*REQUIRED, *OPTIONAL))
    for required in REQUIRED:
        if fields.get(required) is None:
            raise (at / required).refuse("missing", f"Every dataset says its {', '.join(REQUIRED)}.")
    policy = classes[_one_of(fields["class"], classes, at / "class", "data class")]
    overrides = _ages(_mapping(fields.get("overrides") or {}, at / "overrides", STAGES), at / "overrides")
    for stage, age in overrides.items():
        policy = replace(policy, **{stage: age})  # type: ignore[arg-type]
    _check_stages(policy, at / "overrides")
    suite = fields.get("suite", "default")
    dataset = Dataset(
        name=name,
        policy=policy,
        hot=_one_of(fields.get("hot", STORES[0]), STORES, at / "hot", "store"),
        warm=_one_of(fields.get("warm", STORES[0]), STORES, at / "warm", "store"),
        time_column=_column(fields["time_column"], at / "time_column"),
        key=_columns(fields["key"], at / "key"),
        unit=_unit(fields["unit"], at / "unit"),
        fingerprint=_columns(fields.get("fingerprint") or [], at / "fingerprint"),
        suite=_one_of(suite, checks.SUITES, at / "suite", "suite"),
        sort=_columns(fields.get("sort") or [], at / "sort"),
        state=_one_of(fields.get("state", "moves"), STATES, at / "state", "state"),
        fields=_fields(fields.get("fields") or {}, at / "fields"),
        subject=_column(fields["subject"], at / "subject") if fields.get("subject") else "",
        lock=_flag(fields.get("lock", False), at / "lock"),
        importance=Importance(_one_of(fields.get("importance", "important"), _IMPORTANCES, at / "importance", "value")),
        storage=_storage(fields.get("storage") or {}, policy, at / "storage"),
        prefix=_prefix(fields.get("prefix") or "", at / "prefix"),
        wait_for_backup=_flag(fields.get("wait_for_backup", False), at / "wait_for_backup"),
    )
    _check_form(dataset, at)
    return dataset


def _check_form(dataset: Dataset, at: _At) -> None:
    """Refuse what does not fit together: each form of dataset has its own obligations."""
    if dataset.time_column not in dataset.key:
        raise (at / "key").refuse(
            f"the key lacks the time column {dataset.time_column!r}", "A partitioned table cannot keep it unique else."
        )
    if dataset.hot != dataset.warm:
        raise (at / "warm").refuse("hot and warm are of one kind of store", f"Write {dataset.hot} for both.")
    if dataset.hot == "mongodb":
        if "_id" not in dataset.key:
            raise (at / "key").refuse("documents are told apart by _id", f"Write [{dataset.time_column}, _id].")
        if dataset.policy.compression:
            raise (at / "overrides").refuse("documents are not compressed in the warm tier", "Write compression: –.")
    elif dataset.fields:
        raise (at / "fields").refuse("only documents declare fields", "A table's columns are read from it.")
    if (dataset.hot == "s3") != bool(dataset.prefix):
        raise (at / "prefix").refuse("files datasets, and only they, have a prefix", "For example files/charts/.")
    names = {field.name for field in dataset.fields}
    if dataset.hot == "mongodb" and dataset.subject and dataset.subject not in names:
        raise (at / "subject").refuse(f"{dataset.subject!r} is not among the declared fields", "Declare it as text.")
    if names & {"_id", "_raw", dataset.time_column}:
        raise (at / "fields").refuse(f"_id, _raw and {dataset.time_column} are there without being declared")


def _fields(value: object, at: _At) -> tuple[Field, ...]:
    """Read `name: type` or `name: {path: a.b, type: text}`."""
    if not isinstance(value, dict):
        raise at.refuse("must be a mapping of column names to types")
    found = []
    for name, body in value.items():
        spelt = _mapping(body, at / name, ("path", "type")) if isinstance(body, dict) else {"type": body}
        path = spelt.get("path", name)
        if not isinstance(path, str) or not all(path.split(".")):
            raise (at / name / "path").refuse(f"{path!r} is no path", "Names joined by dots: author.id")
        kind = FIELD_KINDS[_one_of(spelt.get("type"), FIELD_KINDS, at / name, "type")]
        found.append(Field(_column(name, at / name), path, kind))
    return tuple(found)


def _storage(value: object, policy: Policy, at: _At) -> tuple[tuple[StorageClass, Span], ...]:
    """Read the ages of the colder storage classes: in order, and within the retention."""
    ladder = _mapping(value, at, tuple(StorageClass)[1:])
    found = [(StorageClass(name), _span(age, at / name)) for name, age in ladder.items()]
    order = list(StorageClass)
    stages = [*found, (None, policy.retention)] if policy.retention else found
    for (one, early), (other, late) in zip(stages, stages[1:], strict=False):
        is_colder = other is None or one is None or order.index(one) < order.index(other)
        if not (is_colder and never_longer(early, late)):
            raise at.refuse(f"stages out of order: {other or 'retention'} ({late}) after {one} ({early})")
    return tuple(found)


def _prefix(value: object, at: _At) -> str:
    if not isinstance(value, str) or (value and (not value.endswith("/") or value.startswith("/"))):
        raise at.refuse(f"{value!r} is no prefix", "Write it like files/charts/.")
    if value.split("/")[0] in ("lake", "iceberg"):
        raise at.refuse("lake/ and iceberg/ belong to the lake")
    return value


def _flag(value: object, at: _At) -> bool:
    if not isinstance(value, bool):
        raise at.refuse("must be true or false")
    return value


def _number(value: object, at: _At) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise at.refuse(f"{value!r} is no amount", "Write a number that is not negative.")
    return float(value)


def _prices(value: object, at: _At) -> Prices:
    body = _mapping(value, at, ("currency", "gib_month", "put_thousand", "get_thousand"))
    each = _mapping(body.get("gib_month") or {}, at / "gib_month", PRICED)
    return Prices(
        gib_month=tuple((name, _number(price, at / "gib_month" / name)) for name, price in each.items()),
        put_thousand=_number(body.get("put_thousand", 0), at / "put_thousand"),
        get_thousand=_number(body.get("get_thousand", 0), at / "get_thousand"),
        currency=str(body.get("currency", "USD")),
    )


def _placement(value: object, at: _At) -> Placement:
    body = _mapping(value, at, ("shift_max", "residency"))
    shift = _number(body.get("shift_max", Placement().shift_max), at / "shift_max")
    if shift >= 1:
        raise (at / "shift_max").refuse("a share of the age below 1", "0.5 lets heat halve an age or add half of it.")
    return Placement(shift, _span(body.get("residency", "1d"), at / "residency"))


def _unit(value: object, at: _At) -> Span:
    unit = _span(value, at)
    if problem := unit_problem(unit):
        raise at.refuse(problem)
    return unit


def _span(value: object, at: _At) -> Span:
    if not isinstance(value, str):
        raise at.refuse(f"{value!r} is not a length of time", "Write a number and a unit, for example 7d.")
    try:
        return parse_span(value)
    except PolicyError as exc:
        raise at.refuse(f"{exc.subject}: {exc.cause}", exc.hint) from None


def _columns(value: object, at: _At) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise at.refuse("must be a list of column names")
    names = tuple(_column(item, at / index) for index, item in enumerate(value))
    if len(set(names)) != len(names):
        raise at.refuse("names a column twice")
    return names


def _column(value: object, at: _At) -> str:
    if not isinstance(value, str) or not _COLUMN_NAME.fullmatch(value):
        raise at.refuse(f"{value!r} is not a column name: letters, digits and _, 63 characters at most")
    return value


def _one_of(value: object, known: Collection[str], at: _At, what: str) -> str:
    if not isinstance(value, str) or value not in known:
        raise at.refuse(f"unknown {what} {value!r}", _did_you_mean(value, known))
    return value


def _mapping(value: object, at: _At, known: Collection[str]) -> dict[str, object]:
    if not isinstance(value, dict):
        raise at.refuse(f"must be a mapping with the keys {', '.join(known)}")
    for key in value:
        if key not in known:
            raise (at / key).refuse("unknown key", _did_you_mean(key, known))
    return value


def _did_you_mean(value: object, known: Collection[str]) -> str:
    close = difflib.get_close_matches(str(value), known, n=1, cutoff=0.5)
    return f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(known)}."


def _load(text: str, at: _At) -> object:
    """Parse YAML after looking at its nodes: the loader itself would let the last of two equal keys win."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is None:
            raise at.refuse("empty", "Start from the policies.yaml that ships with this project.")
        _check_node(root, at, 0)
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as exc:
        line = f" in line {exc.problem_mark.line + 1}" if exc.problem_mark else ""
        raise at.refuse(f"not YAML{line}: {exc.problem}") from None
    except (yaml.YAMLError, ValueError) as exc:
        raise at.refuse(f"not YAML: {exc}") from None


def _check_node(node: yaml.Node, at: _At, depth: int) -> None:
    if depth > _DEPTH_MAX:
        raise at.refuse("nested too deep")
    if isinstance(node, yaml.ScalarNode) and node.tag.endswith(":timestamp"):
        if not re.search(r"(Z|[+-]\d\d?(:?\d\d)?)$", node.value[10:].strip()):
            raise at.refuse(f"naive bound {node.value}: it has no time zone", f"Write {node.value[:10]}T00:00:00Z.")
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _check_node(item, at / index, depth + 1)
    elif isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise at.refuse(f"a key in line {key.start_mark.line + 1} is not a plain word")
            if key.value in seen:
                raise (at / key.value).refuse(f"duplicate key in line {key.start_mark.line + 1}", "Keep one of them.")
            seen.add(key.value)
            _check_node(value, at / key.value, depth + 1)


def _version(policies: Policies) -> str:
    """Hash what the file means: comments, order and spelling (6m, 6mo) make no difference."""
    content = {
        "classes": sorted((asdict(item) for item in policies.classes), key=lambda item: item["name"]),
        "datasets": sorted((asdict(item) for item in policies.datasets), key=lambda item: item["name"]),
        "sweep": [asdict(policies.undo_window), asdict(policies.grace)],
        "placement": asdict(policies.placement),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
