"""One module for each way of recording activations that are compared, ours among them.

Each has a class for every way (see `method.Way`). They run in a process of their own (`worker`), some in an
environment of their own, and so import nothing from one another but `work` and `way`.
"""
