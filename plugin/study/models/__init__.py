"""The model that a study starts from.

base_model  the base model and its tokenizer
smollm      SmolLM2-135M from the package index
vocabulary  a vocabulary cut to the tokens in use
"""
