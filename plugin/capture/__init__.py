"""Activations of a model into a store.

run           capture(): all stages of a table into one store
recorder      Recorder: hooks inside a `with`, for your own loop
callback      RecordingCallback for transformers.Trainer
store         create_store() and the store that is being recorded
session       one model with its hooks
spec          CaptureSpec: what is recorded, and its provenance
site_hooks    hooks that gather activations
output_hooks  losses and statistics of the next-token distribution
statistics    statistics as torch functions
batching      batches of similar length that fit into memory
forecast      bytes, files and time of a capture before it runs
"""
