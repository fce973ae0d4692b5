"""What a dataset's columns are in Iceberg: types, field ids, partitions, and which changes lose nothing.

Why every field is optional: a value that the typed column cannot hold is null there and text in `_exact`, even
where PostgreSQL says NOT NULL.
"""

from __future__ import annotations

from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.transforms import MonthTransform, Transform, YearTransform
from pyiceberg.types import (
    BinaryType,
    BooleanType,
    DateType,
    DecimalType,
    DoubleType,
    FloatType,
    IcebergType,
    IntegerType,
    LongType,
    NestedField,
    StringType,
    TimestampType,
    TimestamptzType,
    UUIDType,
)

from tiering.errors import IncompatibleColumns, SchemaMismatch
from tiering.model import EXACT_COLUMN, Column, Kind, Span
from tiering.stores.parquet_schema import EXACT_FIELD_ID

_PARTITION_FIELD_ID = 1000  # Iceberg numbers partition fields apart from columns, from 1000 on

_TYPES: dict[Kind, IcebergType] = {
    Kind.BOOL: BooleanType(),
    Kind.INT2: IntegerType(),
    Kind.INT4: IntegerType(),
    Kind.INT8: LongType(),
    Kind.FLOAT4: FloatType(),
    Kind.FLOAT8: DoubleType(),
    Kind.TEXT: StringType(),
    Kind.BYTES: BinaryType(),
    Kind.DATE: DateType(),
    Kind.TIMESTAMP: TimestampType(),
    Kind.TIMESTAMPTZ: TimestamptzType(),
    Kind.UUID: UUIDType(),
    Kind.EXACT_TEXT: StringType(),
}


def lake_schema(dataset: str, columns: tuple[Column, ...]) -> Schema:
    """Draw a new lake table's schema, with the columns' own field ids.

    Raises:
        SchemaMismatch: field ids are missing, doubled or not below 1000.
    """
    ids = [column.field_id for column in columns]
    if len(set(ids)) != len(ids) or not all(0 < number < EXACT_FIELD_ID for number in ids):
        raise SchemaMismatch("draw lake schema", dataset, f"field ids {ids} are not distinct numbers in 1…999")
    return _schema([_field(column) for column in columns])


def evolve_schema(dataset: str, current: Schema, columns: tuple[Column, ...], schema_id: int) -> Schema:
    """Add to a lake table's schema what the source has gained; columns it has lost stay, for the old files.

    Args:
        dataset: for the error's text.
        current: the table's schema now.
        columns: the source's columns now.
        schema_id: one that no schema of the table has had yet.

    Raises:
        SchemaMismatch: a column changed its type in a way that old files cannot follow, or its name returned
            under another field id.
    """
    wanted = {field.field_id: field for field in lake_schema(dataset, columns).fields}
    fields = []
    for old in current.fields:
        new = wanted.pop(old.field_id, old)
        if not _is_widening(old.field_type, new.field_type):
            change = f"column {new.name} was {old.field_type} and is {new.field_type}"
            hint = "Give the column a new name; old files stay."
            raise IncompatibleColumns("evolve lake table", dataset, change, hint)
        fields.append(new)
    fields = [field for field in fields if field.field_id != EXACT_FIELD_ID] + list(wanted.values())
    names = [field.name for field in fields]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise SchemaMismatch("evolve lake table", dataset, f"column {doubled[0]} returned with another field id")
    return _schema(fields, schema_id)


def partition_spec(unit: Span, schema: Schema, time_column: str) -> PartitionSpec:
    """Choose partitions that no unit can straddle: months or years, else none.

    Why no days: a file keeps its bounds of time anyway, and small files of a month can be joined into one.
    """
    transform = _partition_transform(unit)
    if transform is None:
        return PartitionSpec(spec_id=0)
    source = schema.find_field(time_column)
    name = f"{time_column}_{transform.root}"
    return PartitionSpec(PartitionField(source.field_id, _PARTITION_FIELD_ID, transform, name), spec_id=0)


def table_properties(schema: Schema) -> dict[str, str]:
    """Choose a lake table's properties; the ones that depend on the columns follow the schema.

    Why no bounds for floats: min and max leave NaN out, so a reader that prunes by them loses rows.
    Why few manifests: a scan opens each of them. Source: https://iceberg.apache.org/docs/latest/configuration/
    """
    floats = [field.name for field in schema.fields if isinstance(field.field_type, FloatType | DoubleType)]
    return {
        # A rolled-back commit must find the metadata that the pointer still names.
        "write.metadata.delete-after-commit.enabled": "false",
        "write.metadata.previous-versions-max": "20",
        "commit.manifest-merge.enabled": "true",
        "commit.manifest.min-count-to-merge": "20",
        "commit.manifest.target-size-bytes": str(512 << 10),
        "schema.name-mapping.default": schema.name_mapping.model_dump_json(),
        **{f"write.metadata.metrics.column.{name}": "counts" for name in floats},
    }


def _schema(fields: list[NestedField], schema_id: int = 0) -> Schema:
    exact = NestedField(EXACT_FIELD_ID, EXACT_COLUMN, StringType(), required=False)
    return Schema(*(field for field in fields if field.field_id != EXACT_FIELD_ID), exact, schema_id=schema_id)


def _field(column: Column) -> NestedField:
    if column.kind is Kind.DECIMAL:
        return NestedField(column.field_id, column.name, DecimalType(column.precision, column.scale), required=False)
    return NestedField(column.field_id, column.name, _TYPES[column.kind], required=False)


def _is_widening(old: IcebergType, new: IcebergType) -> bool:
    """Judge by Iceberg's list of safe promotions. Source: https://iceberg.apache.org/spec/#schema-evolution"""
    if isinstance(old, DecimalType) and isinstance(new, DecimalType):
        return old.scale == new.scale and old.precision <= new.precision
    wider = {(IntegerType(), LongType()), (FloatType(), DoubleType())}
    return old == new or (old, new) in wider


def _partition_transform(unit: Span) -> Transform[int, int] | None:
    one_part = sum(bool(part) for part in (unit.months, unit.days, unit.hours)) == 1
    if not one_part:
        return None
    if unit.months:
        return {1: MonthTransform(), 12: YearTransform()}.get(unit.months)
    within_a_day = unit.days == 1 or (unit.hours and 24 % unit.hours == 0)
    return MonthTransform() if within_a_day else None
