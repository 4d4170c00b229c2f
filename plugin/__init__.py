"""Everything that touches a model or a terminal: prompts, capture, the study, the command line.

cli       the `stratalens` command
study     the training-order study, from a corpus to a report
capture   activations of a model into a store
interop   a store as a torch dataset or an ActivationCache
check     whether hooks give what the model computes
models    hooks, sites and weights of a TransformerLens model
prompts   prompt tables, token ids and named positions
stages    training stages and where their models come from
progress  progress bars and messages on standard error
compat    private interfaces of PyTorch, Transformers and TransformerLens
"""
