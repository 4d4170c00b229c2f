"""Geometry of group centroids as arrays: planes, resampling, eigenvalues."""
