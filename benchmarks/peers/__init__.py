"""One module for each way of recording activations that capture_peers.py compares, ours among them.

Each has a class for every way (see `peers.way.Way`). They run in a process of their own (`peers.worker`), some in an
environment of their own, and so import nothing from one another but `work` and `way`.
"""
