"""What tests of flows share: settings as environment, ways to look at runs, and faults that a real server produces."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.objects import State
from psycopg2 import sql
from pydantic import SecretStr

from tests.ops.world import NOW, World
from tiering.settings import Settings
from tiering.stores.postgres import execute, fetch

PROJECT = Path(__file__).parents[2]


def environment(settings: Settings) -> dict[str, str]:
    """Write settings as the environment variables they are read from."""
    values = settings.model_dump(exclude_none=True) | {"policies": PROJECT / "deployments" / "policies.yaml"}
    return {
        f"TIERING_{name.upper()}": value.get_secret_value() if isinstance(value, SecretStr) else str(value)
        for name, value in values.items()
    }


def run(flow: Flow[..., Any], **parameters: Any) -> State[Any]:
    """Run a flow at the world's now, and return how it ended."""
    state: State[Any] = flow(**{"at": NOW, **parameters}, return_state=True)
    return state


def artifact(key: str) -> Any:
    """Read the newest artifact of a key: a table's rows, or markdown text. Fails when there is none."""
    filters = ArtifactFilter(key=ArtifactFilterKey(any_=[key]))
    with get_client(sync_client=True) as client:
        found = client.request(
            "POST", "/artifacts/filter", json={"artifacts": filters.model_dump(mode="json"), "sort": "CREATED_DESC"}
        ).json()
    assert found, f"no artifact {key}"
    data = found[0]["data"]
    return json.loads(data) if found[0]["type"] == "table" else data


def states(world: World) -> list[tuple[str, str, str]]:
    """List (unit's day, transition, state) of every move, in order."""
    return [
        (f"{begin:%Y-%m-%d}", transition, state)
        for begin, transition, state in ask(
            world, "SELECT begin_at, transition, state FROM tiering.move ORDER BY begin_at, move_id"
        )
    ]


def ask(world: World, statement: str) -> list[tuple[Any, ...]]:
    """Ask the warm database."""
    with world.stores.warm.transaction("ask", "the ledger") as connection:
        return fetch(connection, statement)


def refuse_unit(world: World, begin: datetime, sqlstate: str, times: int | None = None) -> None:
    """Make the server itself refuse to record the unit's new place: with an error, the first `times` times or always.

    A sequence counts, because it is not rolled back with the refused transaction.
    """
    body = """BEGIN
        IF NEW.begin_at = {begin} AND nextval('tiering.refusals') <= {times} THEN
            RAISE EXCEPTION 'refused by the test' USING ERRCODE = {sqlstate};
        END IF;
        RETURN NEW;
    END"""
    text = sql.SQL(body).format(
        begin=sql.Literal(begin), times=sql.Literal(times or 2**60), sqlstate=sql.Literal(sqlstate)
    )
    with world.stores.warm.transaction("arrange", "a fault") as connection:
        execute(connection, "CREATE SEQUENCE tiering.refusals")
        execute(
            connection,
            sql.SQL("CREATE FUNCTION tiering.refuse() RETURNS trigger LANGUAGE plpgsql AS {}").format(
                sql.Literal(text.as_string(connection))
            ),
        )
        execute(
            connection,
            """CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON tiering.unit
               FOR EACH ROW EXECUTE FUNCTION tiering.refuse()""",
        )
