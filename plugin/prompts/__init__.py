"""Prompt tables, their token ids, and named positions in them.

table            PromptTable: columns, defaults, validation
prompt_ids       default names of rows
stored_ids       default names of rows in a store that exists
columns          rules for one column
files            csv, tsv, jsonl and parquet files
spans            character spans of entities and span columns
tokenization     token ids, offsets and digests
positions        named positions as token indices
entity_warnings  warnings about rows that may share an entity
"""
