"""Protobuf's wire format, as far as reading an ONNX file without loading it needs it.

A message is a row of fields, each a tag (number and wire type) and a payload; everything big carries its length.  So
one steps over a gigabyte of weights without reading it.  https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_FIXED = {FIXED64: 8, FIXED32: 4}

Data: TypeAlias = bytes | mmap.mmap


class Field(NamedTuple):
    """One field of a message."""

    number: int
    wire: int
    tag: int
    """Byte where the field begins."""
    start: int
    stop: int
    """Its payload."""


class Malformed(Exception):
    """The bytes are no protobuf message: says what is wrong and at which byte."""


def fields(data: Data, start: int, stop: int) -> Iterator[Field]:
    """The fields of the message in `data[start:stop]`, in order; payloads are skipped, not read.

    Raises:
        Malformed: the bytes are no message, or end within a field.
    """
    at = start
    while at < stop:
        tag, body = _varint(data, at, stop)
        number, wire = tag >> 3, tag & 7
        if wire == BYTES:
            length, body = _varint(data, body, stop)
            end = body + length
        elif wire == VARINT:
            end = _varint(data, body, stop)[1]
        elif wire in _FIXED:
            end = body + _FIXED[wire]
        else:
            raise Malformed(f"unknown wire type {wire} at byte {at}")
        if number == 0:
            raise Malformed(f"field number 0 at byte {at}")
        if end > stop:
            raise Malformed(f"truncated at byte {stop:,}: field {number} at byte {at:,} ends at byte {end:,}")
        yield Field(number, wire, at, body, end)
        at = end


def bytes_field(number: int, payload: bytes) -> bytes:
    """A field that carries bytes (or a message, or text), serialised."""
    return _number(number << 3 | BYTES) + _number(len(payload)) + payload


def varint_field(number: int, value: int) -> bytes:
    """A field that carries a non-negative number, serialised."""
    return _number(number << 3 | VARINT) + _number(value)


def _number(value: int) -> bytes:
    """A base-128 number, lowest group first."""
    groups = []
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])


def _varint(data: Data, at: int, stop: int) -> tuple[int, int]:
    """A base-128 number and the byte behind it."""
    value = 0
    for position in range(at, min(at + 10, stop)):
        value |= (data[position] & 0x7F) << 7 * (position - at)
        if data[position] < 0x80:
            return value, position + 1
    raise Malformed(f"truncated at byte {stop:,}" if at + 10 > stop else f"malformed number at byte {at:,}")
