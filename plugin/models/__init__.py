"""A TransformerLens model: its hooks, its sites and the identity of its weights.

adapters         one interface to TransformerBridge, HookedTransformer and HookedRootModule
hooks            add and remove forward hooks
sites            Site and SiteSelection
site_resolution  site names to hooks, shapes and dtypes
weights          fingerprint of the weights
"""
