"""Prompt tables, their token ids, and named positions in them.

table            PromptTable: columns, defaults, validation
chats            tables of conversations
chat_templates   conversations as text, and the characters of their turns
documents        tables of long documents in windows
place_rows       methods of a table that make one row of each place
places           matches, tokens and ends of sentences in prompts
prompt_ids       names and groups of rows
ids_of_store     names of rows that an existing store has
columns          rules for one column
files            csv, tsv, jsonl and parquet files
spans            character spans of entities and span columns
ragged_array     rows of different lengths in one array
tokenization     token ids, offsets and digests
special_tokens   special tokens around a prompt, and prepend_bos
positions        named positions as token indices
entity_warnings  warnings about rows that may share an entity
"""
