"""Directions: angles between probes, centroids and subspaces, how they change, and what they do in a model.

directions         cosines(), agreement(), drift() and steps()
alignment          principal_angles() and procrustes()
direction_set      Directions and directions(): named unit vectors with their place and provenance
direction_files    Directions as zarr and safetensors
random_directions  directions without a meaning, drawn from the covariance of activations
effect_files       results of interventions on disk
effects            effects of interventions: intervals, null, slope over doses, verdict
"""
