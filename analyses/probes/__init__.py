"""Linear probes.

probe       probe()
plan        folds and targets shared by all slabs
slab        probes of one slab
generalise  generalise(): scores of groups a probe never saw
"""
