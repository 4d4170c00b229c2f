"""Group centroids, the plane of training order, principal components.

centroids   centroids() and project()
projection  order and straightness from inner products
slab        both functions on one slab
resampling  resampled sums without reading rows again
entities    single rows in the plane
pca         pca()
"""
