"""Group centroids, the plane of training order, principal components.

centroids   centroids() and project()
projection  geometry from inner products
slab        one slab
resampling  resampled sums without reading rows again
entities    single rows in the plane
pca         pca()
"""
