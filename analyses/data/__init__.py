"""What all analyses share: labels, splits, targets, slabs.

array_types     type aliases
groups          groups of rows by a label column
training_order  the order of groups by stage
targets         pairs of groups as targets of probes
splits          folds and halves over entities
slabs           the slabs of one site
results         vectors and variables of a result
cancellation    cancellation of a running analysis from another thread
"""
