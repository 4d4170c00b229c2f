"""Storage backends: a folder or an object store.

base          the protocol of a storage backend
local         a folder
disk          the calls that change a local disk; files written under temporary names
local_locks   locks on a folder
atomic_files  single files next to a store, replaced atomically
object_store  object stores through fsspec
leases        locks on an object store; concurrent writing there is experimental
resolve       a path or URL to its storage
"""
