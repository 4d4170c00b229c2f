"""Verification and repair.

verify           verify_store()
report           VerifyReport
data_checks      one data file against its checksums
metadata_checks  documents, labels, history and commit records
unused_files     files that nothing refers to
repair           repair_store()
"""
