"""Checks that hooks give what the model computes.

check            check(): passes over a small sample, and the table of findings
report           CheckReport, verdicts and tolerances
sample           the tokens of the sample, alone and padded
traces           values of hooks and modules in forward passes
invariance       padding, batch size, repetition, key-value cache, attention mask
residual_stream  the sums that connect the sites of a block, and the logits
hf_modules       plain PyTorch hooks on the underlying Hugging Face model
modules          sites against the inputs and outputs of these modules
components       attention, MLP and norms against the classes of transformers
"""
