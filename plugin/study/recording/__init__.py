"""Recordings of the checkpoints of a study.

stores   the stores of activations
answers  the likelihood of each candidate answer
"""
