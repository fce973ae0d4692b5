"""The fixtures give every test a database and buckets of its own."""

from __future__ import annotations

import psycopg2
import pytest

from infra.local import Stack
from tiering.settings import Settings


@pytest.mark.parametrize("turn", [1, 2])
def test_a_fresh_database_has_no_tables_of_another_test(stack: Stack, fresh_settings: Settings, turn: int) -> None:
    connection = psycopg2.connect(fresh_settings.hot_pg_url.get_secret_value())
    with connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE only_mine (turn int)")  # fails the second time if the database were shared
    connection.close()
    stack.s3.client().put_object(Bucket=fresh_settings.lake_bucket, Key="a", Body=b"x", IfNoneMatch="*")


def test_two_databases_are_two(fresh_two_database_settings: Settings) -> None:
    assert not fresh_two_database_settings.is_one_database


def test_one_database_is_one(settings: Settings, two_database_settings: Settings) -> None:
    assert settings.is_one_database
    assert not two_database_settings.is_one_database
