"""A store as a lazy Dataset.

open         open_store()
lazy_arrays  lazy arrays for xarray
dask_arrays  dask arrays over stored variables
selection    selections of lazy arrays
indexing     ranges of rows to read
slabs        which files hold a selection
chunks       reading inside one file
staleness    notices a store that was replaced while open
"""
