"""The PostgreSQL store: a malformed URL is refused without showing what is in it."""

from __future__ import annotations

import traceback

import pytest
from pydantic import SecretStr

from tiering import errors
from tiering.stores.postgres import Postgres


@pytest.mark.parametrize(
    "url",
    ["postgresql+psycopg2://bob:s3cret@h/db", "postgres:/bob:s3cret@h/db", "postgresql://bob:s3%zzcret@h/db"],
)
def test_a_malformed_url_is_refused_and_its_password_stays_secret(url: str) -> None:
    database = Postgres(SecretStr(url), "hot PostgreSQL")
    with pytest.raises(errors.SettingsError, match="malformed") as caught, database.transaction("look", "around"):
        pass
    told = str(caught.value) + "".join(traceback.format_exception(caught.value))
    assert "s3cret" not in told
    assert "zzcret" not in told
    with pytest.raises(errors.SettingsError, match="malformed"):
        database.connect()
