"""What all analyses share: labels, splits, targets, slabs.

array_types     type aliases
groups          groups of rows by a label column
training_order  the order of groups by stage
targets         pairs of groups as targets of probes
splits          folds and halves over entities
slabs           the slabs of one site
results         vectors and variables of a result
summary         summaries on disk, and open_summary()
summary_arrays  the arrays of a finished stage of a summary
summary_merge   merge_summaries()
row_moments     sums of rows around a centre, and how they join
row_sample      a sample of whole entities that does not depend on the division of the rows
norm_sketch     quantiles of norms from counts
cancellation    cancellation of a running analysis from another thread
"""
