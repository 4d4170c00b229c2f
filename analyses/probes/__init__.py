"""Linear probes.

probe            probe()
plan             folds and targets that all slabs share
slab             probes of one slab
quality          measures of scores and their intervals
shuffled_probes  shuffled_probes(): the null of cosines
sparse_probe     sparse_probe(): probes of the k best features
summary_probe    summary_probe(): closed forms from a summary
generalise       generalise(): scores of groups that a probe was not trained on
"""
