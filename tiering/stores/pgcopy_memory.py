# mypy: disallow-untyped-decorators=False
"""Numba intrinsics: call a C function by address, and read or write raw memory.

Kernels get addresses as plain int64 arguments and so stay cacheable on disk. Assumes a 64-bit,
little-endian machine (x86-64, arm64), as the wheels of numba and psycopg2 do.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import extending, types

intrinsic: Any = extending.intrinsic


def _pointer(builder: Any, address: Any, bits: int) -> Any:
    return builder.inttoptr(address, ir.IntType(bits).as_pointer())


def _make_load(bits: int, result: Any, is_big_endian: bool) -> Any:
    @intrinsic
    def load(typing_context: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            value = builder.load(_pointer(builder, args[0], bits))
            value.align = 1  # values in a row lie anywhere
            return builder.bswap(value) if is_big_endian else value

        return result(types.int64), generate

    return load


def _make_store(bits: int, stored: Any, is_big_endian: bool) -> Any:
    @intrinsic
    def store(typing_context: Any, address: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            value = builder.bswap(args[1]) if is_big_endian else args[1]
            builder.store(value, _pointer(builder, args[0], bits)).align = 1
            return context.get_dummy_value()

        return types.void(types.int64, stored), generate

    return store


load_u8 = _make_load(8, types.uint8, False)
load_u32 = _make_load(32, types.uint32, False)
load_u64 = _make_load(64, types.uint64, False)
load_be16 = _make_load(16, types.int16, True)
load_be32 = _make_load(32, types.int32, True)
load_be64 = _make_load(64, types.int64, True)
store_u8 = _make_store(8, types.uint8, False)
store_u64 = _make_store(64, types.uint64, False)
store_be16 = _make_store(16, types.int16, True)
store_be32 = _make_store(32, types.int32, True)
store_be64 = _make_store(64, types.int64, True)


@intrinsic
def copy_memory(typing_context: Any, target: Any, source: Any, length: Any) -> Any:
    """Copy `length` bytes between two addresses that do not overlap."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        byte = ir.IntType(8).as_pointer()
        memcpy = builder.module.declare_intrinsic("llvm.memcpy", [byte, byte, ir.IntType(64)])
        flag = ir.Constant(ir.IntType(1), 0)
        builder.call(memcpy, [builder.inttoptr(args[0], byte), builder.inttoptr(args[1], byte), args[2], flag])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@intrinsic
def call_get_copy_data(typing_context: Any, function: Any, connection: Any, buffer_out: Any) -> Any:
    """Call `PQgetCopyData(connection, buffer_out, 0)` at address `function`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        i64, i32 = ir.IntType(64), ir.IntType(32)
        shape = ir.FunctionType(i32, [i64, i64, i32]).as_pointer()
        return builder.call(builder.inttoptr(args[0], shape), [args[1], args[2], ir.Constant(i32, 0)])

    return types.int32(types.int64, types.int64, types.int64), generate


@intrinsic
def call_free(typing_context: Any, function: Any, pointer: Any) -> Any:
    """Call `PQfreemem(pointer)` at address `function`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        shape = ir.FunctionType(ir.VoidType(), [ir.IntType(64)]).as_pointer()
        builder.call(builder.inttoptr(args[0], shape), [args[1]])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate
