"""Training stages: what they are called, in which order they were trained, where their models come from.

stage           Stage: names and order of stages
checkpoints     Checkpoint, Revision and LoraAdapter
label_warnings  warnings about labels that look like misspelled stage names
"""
