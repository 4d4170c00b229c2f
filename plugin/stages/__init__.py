"""Training stages: names, training order, and the sources of their models.

stage           Stage; parsing, ordering, naming and loading of stages
checkpoints     Checkpoint, Revision and LoraAdapter: stored models
hub_errors      did the Hugging Face hub refuse, or did it not answer?
label_warnings  warnings about labels that look like misspelled stage names
"""
