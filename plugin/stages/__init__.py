"""Training stages: names, training order, and the sources of their models.

stage           Stage; parsing, ordering, naming and loading of stages
checkpoints     Checkpoint, Revision and LoraAdapter: stored models
label_warnings  warnings about labels that look like misspelled stage names
"""
