"""Checkpoint suites on the Hugging Face hub: check them without their weights, then record them one after the other.

sweep             sweep_hub(): download, record and delete, one checkpoint after the other
preflight         preflight(): which revisions are what they claim to be
revisions         training steps in the names of revisions; patterns and "log:16"
client            Hub: requests with retry, and errors as messages
weight_files      the weight files of a revision, and the headers of safetensors files
comparison        revisions with the same weights, with shared files, and with other configurations
known_faults      faults that the users of public suites have reported
checkpoint_queue  one checkpoint on the disk, and the next one on its way
sweep_progress    lines with the time left for the whole sweep
recorded_weights  the weight files from which a store was recorded
"""
