"""A TransformerLens model: its hooks, its sites and the fingerprint of its weights.

adapters         one interface to TransformerBridge, HookedTransformer and HookedRootModule
hooks            hooks that observe, and evaluation mode
model_errors     messages for models without hooks and for token ids without an embedding
processing       processed weights and spliced modules, as flags
sites            Site, SiteSelection and the short names
site_resolution  site names as hooks, with shapes and dtypes
user_hooks       hooks that the caller has put on a model
weights          fingerprint of the weights
tokenizers       the tokenizer of the model's checkpoint
"""
