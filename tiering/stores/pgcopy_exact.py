"""The values that a typed column cannot hold, as PostgreSQL writes them: `_exact` (see `model.EXACT_COLUMN`)."""

from __future__ import annotations

import json
import re

from tiering.model import Kind

INT64_MAX = 2**63 - 1
INT64_MIN = -(2**63)
INT32_MAX = 2**31 - 1
INT32_MIN = -(2**31)
_NUMERIC = {0xC000: "NaN", 0xD000: "Infinity", 0xF000: "-Infinity"}
_DAY = 86_400_000_000
_TIMESTAMP = re.compile(r"(\d{4,6})-(\d\d)-(\d\d) (\d\d):(\d\d):(\d\d)(?:\.(\d{1,6}))?(?:\+00)?")


def exact_text(kind: Kind, raw: int) -> str:
    """Write a special value as PostgreSQL does, from its wire form: numeric's sign word, or the integer."""
    if kind is Kind.DECIMAL:
        return _NUMERIC[raw]
    if kind is Kind.DATE:
        return "infinity" if raw == INT32_MAX else "-infinity"
    if raw in (INT64_MAX, INT64_MIN):
        return "infinity" if raw == INT64_MAX else "-infinity"
    return _timestamp_text(raw) + ("+00" if kind is Kind.TIMESTAMPTZ else "")


def exact_raw(kind: Kind, text: str) -> int:
    """Read a special value back to its wire form: the inverse of `exact_text`.

    Raises:
        ValueError: the text is none that `exact_text` writes.
    """
    if kind is Kind.DECIMAL:
        return {name: code for code, name in _NUMERIC.items()}[text]
    if text in ("infinity", "-infinity"):
        is_date = kind is Kind.DATE
        if text == "infinity":
            return INT32_MAX if is_date else INT64_MAX
        return INT32_MIN if is_date else INT64_MIN
    match = _TIMESTAMP.fullmatch(text)
    if match is None:
        raise ValueError(f"no exact value: {text!r}")
    year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
    micros = int((match[7] or "").ljust(6, "0"))
    return _days(year, month, day) * _DAY + ((hour * 60 + minute) * 60 + second) * 1_000_000 + micros


def exact_json(values: dict[str, str]) -> str:
    """Write one row's `_exact` cell, the same bytes for the same values."""
    return json.dumps(values, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def _timestamp_text(raw: int) -> str:
    """Write microseconds since 2000; only years beyond what int64 holds since 1970 come here (all AD)."""
    days, micros = divmod(raw, _DAY)
    year, month, day = _civil(days)
    seconds, fraction = divmod(micros, 1_000_000)
    clock = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    return f"{year:04}-{month:02}-{day:02} {clock}" + (f".{fraction:06}".rstrip("0") if fraction else "")


def _days(year: int, month: int, day: int) -> int:
    """Count days from 2000-01-01 in the proleptic Gregorian calendar, with years that begin in March."""
    year -= month <= 2
    of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    return year * 365 + year // 4 - year // 100 + year // 400 + of_year - 730_425


def _civil(days: int) -> tuple[int, int, int]:
    days += 730_425
    era, of_era = divmod(days, 146_097)
    year = (of_era - of_era // 1460 + of_era // 36_524 - of_era // 146_096) // 365
    of_year = of_era - (365 * year + year // 4 - year // 100)
    month = (5 * of_year + 2) // 153
    day = of_year - (153 * month + 2) // 5 + 1
    month = month + 3 if month < 10 else month - 9
    return year + era * 400 + (month <= 2), month, day
