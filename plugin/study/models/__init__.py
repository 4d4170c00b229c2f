"""The model that a study starts from.

base_model  model and tokenizer of a study
smollm      SmolLM2-135M from the package index
vocabulary  a vocabulary cut to the tokens in use
"""
