"""Rows in PostgreSQL's binary COPY format: https://www.postgresql.org/docs/current/sql-copy.html."""

import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

CHUNK_ROWS = 8192
COPY_BEGIN = b"PGCOPY\n\xff\r\n\0" + struct.pack(">ii", 0, 0)  # signature, flags, length of the header extension
COPY_END = struct.pack(">h", -1)


def copy_records(
    run_id: str, ids: pa.Array, kind: str, values: Sequence[npt.NDArray[Any]]
) -> Iterator[npt.NDArray[np.void]]:
    """Encode rows as records (run_id, id, values…), at most ``CHUNK_ROWS`` at a time.

    The yielded array is a buffer that the next chunk overwrites. Each value is preceded by its length in bytes; a
    vector is in pgvector's format: number of values, 0, values.

    Args:
        ids: int64 or string [n].
        kind: type of the ids in the database: bigint, uuid or text.
        values: columns, float32[n] for a real, int32[n] for an integer and float32[n, factors] for a vector.
    """
    for positions, encoded in _ids(ids, kind):
        layout: list[tuple[str, npt.DTypeLike, tuple[int, ...]]] = [
            ("fields", ">i2", ()),
            ("run_length", ">i4", ()),
            ("run", f"S{len(run_id.encode())}", ()),
            ("id_length", ">i4", ()),
            ("id", encoded.dtype, ()),
        ]
        constants = {
            "fields": 2 + len(values),
            "run_length": len(run_id.encode()),
            "run": run_id.encode(),
            "id_length": encoded.itemsize,
        }
        for number, value in enumerate(values):
            layout.append((f"length{number}", ">i4", ()))
            constants[f"length{number}"] = 4
            if value.ndim == 2:
                layout += [(f"dimensions{number}", ">i2", ()), (f"unused{number}", ">i2", ())]
                constants[f"length{number}"] = 4 + 4 * value.shape[1]
                constants[f"dimensions{number}"] = value.shape[1]
            layout.append((f"value{number}", value.dtype.newbyteorder(">"), value.shape[1:]))
        records = np.zeros(min(CHUNK_ROWS, len(encoded)), layout)
        for name, constant in constants.items():
            records[name] = constant
        for start in range(0, len(encoded), CHUNK_ROWS):
            part = positions[start : start + CHUNK_ROWS]
            chunk = records[: len(part)]
            chunk["id"] = encoded[start : start + CHUNK_ROWS]
            for number, value in enumerate(values):
                chunk[f"value{number}"] = value[part]
            yield chunk


def _ids(ids: pa.Array, kind: str) -> Iterator[tuple[npt.NDArray[np.intp], npt.NDArray[np.void]]]:
    """``ids`` in PostgreSQL's binary format, grouped by width, each group with the positions of its rows."""
    positions = np.arange(len(ids))
    if kind == "bigint":
        yield positions, ids.to_numpy().astype(">i8").view("V8")
    elif kind == "uuid":
        digits = "".join(ids.to_pylist()).replace("-", "")
        yield positions, np.frombuffer(bytes.fromhex(digits), "V16")
    else:
        texts = ids.cast(pa.large_string()).cast(pa.large_binary())
        widths = pc.binary_length(texts).to_numpy()
        for width in np.unique(widths):
            positions = np.flatnonzero(widths == width)
            yield positions, np.frombuffer(b"".join(texts.take(pa.array(positions)).to_pylist()), f"V{width}")
