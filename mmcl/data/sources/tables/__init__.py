"""Tables with a row per sample: csv, tsv, jsonl, parquet, txt."""
