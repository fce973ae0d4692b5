"""One fast way to read and write: `open_access`, and the kinds of keys. See docs/access.md."""

from tiering.access.client import Access, open_access
from tiering.access.keys import (
    ANALYSIS,
    INFERENCE,
    LATEST,
    NEWS,
    OHLCV,
    PREFS,
    PRICE,
    QUOTE,
    SENTIMENT,
    SESSION,
    SIGNALS,
    SUMMARY,
    TECH,
    VOLUME,
    WATCHLIST,
    Key,
    Kind,
)
from tiering.access.reading import Answer, Budgets
from tiering.access.tickets import Ticket, TicketState, TicketStatus
from tiering.access.writing import Written

__all__ = [
    "ANALYSIS", "INFERENCE", "LATEST", "NEWS", "OHLCV", "PREFS", "PRICE", "QUOTE", "SENTIMENT", "SESSION", "SIGNALS",
    "SUMMARY", "TECH", "VOLUME", "WATCHLIST", "Access", "Answer", "Budgets", "Key", "Kind", "Ticket", "TicketState",
    "TicketStatus", "Written", "open_access",
]  # fmt: skip
