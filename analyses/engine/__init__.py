"""How one function reaches every slab: reading, threads and workers, assembling, caching."""
