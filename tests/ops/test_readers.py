"""Applications read the live view while units move: each row once, and never an error of ours."""

from __future__ import annotations

import threading

import psycopg2

from tests.ops.world import days_ago, open_world
from tiering.model import Transition
from tiering.settings import Settings


def test_a_reader_sees_each_row_once_whatever_is_moving(fresh_settings: Settings) -> None:
    """Hand-over, packing, and a merge into a packed unit, with readers that never pause."""
    with open_world(fresh_settings) as world:
        for days in (30, 31, 0):
            world.insert_day(days_ago(days))
        seen: list[tuple[int, int]] = []
        problems: list[BaseException] = []
        is_over = threading.Event()

        def read() -> None:
            try:
                connection = psycopg2.connect(fresh_settings.warm_pg_url.get_secret_value())
                with connection.cursor() as cursor:
                    while not is_over.is_set():
                        cursor.execute("SELECT count(*), count(DISTINCT (symbol, ts, source)) FROM live.market_bars")
                        seen.append(cursor.fetchone())
                        connection.commit()
                connection.close()
            except BaseException as exc:
                problems.append(exc)

        readers = [threading.Thread(target=read) for _ in range(2)]
        for reader in readers:
            reader.start()
        try:
            world.run(Transition.HOT_TO_WARM)
            world.run(Transition.COMPRESS)
            assert world.insert_day(days_ago(30), symbols=1, minutes=1, source="late") == 1
            receipts = world.run(Transition.MERGE)
        finally:
            is_over.set()
            for reader in readers:
                reader.join()
        assert not problems, problems
        assert [r.unit.generation for r in receipts] == [2]
        assert set(seen) <= {(180, 180), (181, 181)}
        assert seen[-1] == (181, 181)
