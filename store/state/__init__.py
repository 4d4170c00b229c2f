"""The state of a store: its root document, commit records, history and provenance.

manifest      the root document
root_checks   limits and types of a root document
commit_log    commit records
history       the history file
publish       atomic replacement of the root document
provenance    fields that must match
store_files   files that the root needs
missing_rows  reasons for which rows are missing
capture_plan  stages that a capture still has to record
info          a store described as a dict
"""
