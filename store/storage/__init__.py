"""Storage backends: a folder or an object store.

base          the protocol of a storage backend
local         a folder
disk          the calls that change a local disk; files written under temporary names
local_locks   locks on a folder
atomic_files  single files next to a store, replaced atomically
object_store  object stores through fsspec
http_server   stores on a web server
hub           stores in repositories of the Hugging Face Hub
remote_handle ranged reads of one remote object
chunk_cache   chunks of remote stores on the local disk
snapshot      small objects of a remote store that are known already
retries       repeated requests
leases        locks on an object store; concurrent writing there is experimental
resolve       a path or URL to its storage
"""
