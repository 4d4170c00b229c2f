"""One function applied to every slab, in threads or on a cluster.

run          sweep(), run_slabs() and its options
tasks        one slab as a task for a worker
assemble     slab results into one Dataset
cache        finished slabs next to the store
cache_files  their files, checksums and verification
cache_checks verification of cached results
threads      number of workers, BLAS threads
progress_bar the progress bar
"""
