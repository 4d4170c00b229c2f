"""A store as a lazy Dataset.

open         open_store()
joining      stores joined along entity
lazy_arrays  lazy arrays: variables, label columns, computed values
dask_arrays  dask arrays over stored variables
selection    selections that are not read yet
indexing     row ranges to read
slabs        which files hold a selection
chunks       reading inside one file
json_text    attributes that are dicts for Python and text for files
staleness    notices that an open store was replaced
"""
