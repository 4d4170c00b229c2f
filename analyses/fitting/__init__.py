"""Estimators: from rows and targets to coefficients, many problems at a time."""
