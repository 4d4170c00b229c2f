"""Methods of recording activations that the benchmarks compare, one module for each library.

Each module lists its classes in METHODS. The methods run in their own processes, some of them in their own
environments, so they import only the base class and the workload from this package.
"""
