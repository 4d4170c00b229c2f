"""Group centroids, the plane of training order, principal components.

centroids       centroids() and project()
projection      order and straightness from inner products
steps           lengths of steps between groups, and angles between successive steps
order_test      the order of the inner groups against random orders
slab            both functions on one slab
resampling      resampled sums without reading rows again
mixed_entities  the same for entities with rows in several groups
summary_centroids  centroids from a summary
entities        single rows in the plane
pca             pca()
"""
