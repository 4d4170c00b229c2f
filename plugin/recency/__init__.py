"""The training-order study: corpus, sequential fine-tuning, recording, analysis.

Nothing here is needed to record activations of one's own models; it is the
worked study that the rest of the package was made for, and its demo.
"""
