"""Prompt tables, their token ids, and named positions in them.

table         PromptTable: columns, defaults, validation
columns       the rules for one column
files         csv, tsv, jsonl and parquet into a DataFrame
spans         character spans of entities
tokenization  token ids, offsets and digests
positions     named positions to token indices
"""
