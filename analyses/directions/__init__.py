"""Directions: angles between probes, centroids and subspaces.

directions  cosines(), agreement(), drift() and steps()
alignment   principal_angles() and procrustes()
"""
