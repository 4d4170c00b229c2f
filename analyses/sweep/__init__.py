"""One function applied to every slab: reading, threads and workers, assembling, caching.

run       sweep() and run_slabs()
tasks     what a task carries to a worker
assemble  slab results into one Dataset
cache     finished slabs next to the store
threads   one BLAS thread in each worker
"""
