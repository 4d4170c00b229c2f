"""Where a store lies: a folder or an object store.

base          the protocol of a storage backend
local         folders, written durably
local_locks   locks on a folder
object_store  object stores through fsspec
leases        locks on an object store
resolve       a path or URL to its storage
"""
