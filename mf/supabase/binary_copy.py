"""Rows in PostgreSQL's binary COPY format: https://www.postgresql.org/docs/current/sql-copy.html."""

import struct
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mf.model_directory import Embeddings

CHUNK_ROWS = 8192
COPY_BEGIN = b"PGCOPY\n\xff\r\n\0" + struct.pack(">ii", 0, 0)  # signature, flags, length of the header extension
COPY_END = struct.pack(">h", -1)


def copy_records(run_id: str, rows: Embeddings, kind: str) -> Iterator[npt.NDArray[np.void]]:
    """Encode ``rows`` as records (run_id, id, bias, embedding), at most ``CHUNK_ROWS`` at a time.

    The yielded array is a buffer that the next chunk overwrites. Each value is preceded by its length in bytes; a
    vector is in pgvector's format: number of values, 0, values.

    Args:
        kind: type of the ids in the database: bigint, uuid or text.
    """
    factors = rows.vectors.shape[1]
    for positions, ids in _ids(rows.ids, kind):
        constant = {
            "fields": (">i2", 4),
            "run_length": (">i4", len(run_id.encode())),
            "run": (f"S{len(run_id.encode())}", run_id.encode()),
            "id_length": (">i4", ids.itemsize),
            "id": (ids.dtype, None),
            "bias_length": (">i4", 4),
            "bias": (">f4", None),
            "vector_length": (">i4", 4 + 4 * factors),
            "dimensions": (">i2", factors),
            "unused": (">i2", 0),
        }
        layout = [(name, form) for name, (form, _) in constant.items()] + [("vector", ">f4", (factors,))]
        records = np.zeros(min(CHUNK_ROWS, len(ids)), layout)
        for name, (_, value) in constant.items():
            if value is not None:
                records[name] = value
        for start in range(0, len(ids), CHUNK_ROWS):
            part = positions[start : start + CHUNK_ROWS]
            chunk = records[: len(part)]
            chunk["id"], chunk["bias"], chunk["vector"] = (
                ids[start : start + CHUNK_ROWS], rows.bias[part], rows.vectors[part],
            )  # fmt: skip
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
