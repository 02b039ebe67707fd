"""Tables with one row per sample: csv, tsv, jsonl, parquet, txt."""
