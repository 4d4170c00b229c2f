"""What the analyses share: labels, splits, targets, slabs.

groups          groups of rows by a label column
training_order  the order of groups by stage
targets         pairs of groups as targets of probes
splits          folds and halves over entities
slabs           the slabs of one site
results         what a result holds
"""
