"""A small world of files: a dataset of objects in a real bucket, and ways to look at all of it at once."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from tiering.model import Dataset, Plan, Receipt
from tiering.ops import lifecycle
from tiering.plan.lifecycle import plan_moves
from tiering.stores.object_rows import ObjectRecord, list_objects
from tiering.stores.opening import Stores

POLICIES = """
market_data: {hot_to_warm: 7d, warm_to_cold: 2y, compression: 7d, retention: 5y}
sweep: {undo_window: 1d, grace: 1d}
datasets:
  charts:
    class: market_data
    hot: s3
    warm: s3
    time_column: created_at
    key: [created_at, key]
    unit: 1d
    prefix: charts/
    storage: {STANDARD_IA: 1mo, GLACIER_IR: 6mo, DEEP_ARCHIVE: 2y}
    overrides: {hot_to_warm: –, warm_to_cold: –}
"""


@dataclass(frozen=True)
class Files:
    """Stores and one dataset of files whose objects were created today; time passes by `after`."""

    stores: Stores
    dataset: Dataset
    today: datetime

    def write(self, name: str, data: bytes = b"chart", **options: object) -> str:
        """Write as an application does: over what is there. The newest object sets the reference."""
        bucket = self.stores.files
        answer = bucket._client.put_object(Bucket=bucket.bucket, Key=f"charts/{name}", Body=data, **options)
        return str(answer["VersionId"])

    def after(self, **span: float) -> datetime:
        return self.today + timedelta(**span)

    def begin(self, at: datetime) -> list[int]:
        return lifecycle.begin_moves(self.stores, self.plan(at))

    def plan(self, at: datetime) -> Plan:
        """Plan as if a new object had come at that instant: ages count from the newest."""
        residences, _ = lifecycle.survey(self.stores, self.dataset)
        return plan_moves(self.dataset, residences, at, at)

    def run(self, at: datetime) -> list[Receipt]:
        return [lifecycle.run_move(self.stores, move_id, at, "test") for move_id in self.begin(at)]

    def classes(self) -> dict[str, str]:
        return {found.key.removeprefix("charts/"): found.storage_class for found in self.stores.files.list("charts/")}

    def rows(self) -> list[ObjectRecord]:
        with self.stores.warm.transaction("list", "objects") as connection:
            return list_objects(connection, dataset="charts")

    def body(self, name: str) -> bytes:
        with self.stores.files.open(f"charts/{name}") as file:
            return file.read()
