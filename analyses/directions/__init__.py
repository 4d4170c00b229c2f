"""Directions: angles between probes, centroids and subspaces, and how they change.

directions  cosines(), agreement(), drift() and steps()
alignment   principal_angles() and procrustes()
"""
