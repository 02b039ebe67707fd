"""Tables of texts and numbers that training and other programs read, as .parquet or .jsonl."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

RECORD_SUFFIXES = (".parquet", ".jsonl")


def write_records(file: Path, records: Sequence[dict[str, Any]], schema: pa.Schema) -> None:
    """Write records as a parquet table, or as JSON, one a line, by the suffix of the file.

    Args:
        file: where to write.
        records: the same keys in each.
        schema: columns of the parquet table.
    """
    if file.suffix.lower() == ".jsonl":
        file.write_text("".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records), "utf-8")
        return
    pq.write_table(pa.Table.from_pylist(list(records), schema), file)
