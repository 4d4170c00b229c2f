"""Linear probes.

probe       probe()
plan        folds and targets that all slabs share
slab        probes of one slab
quality     measures of scores and their intervals
generalise  generalise(): scores of groups that a probe was not trained on
"""
