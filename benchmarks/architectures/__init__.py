"""Recordings of tiny random models of every architecture, compared with what the models compute.

tiny_models  a small random model of each architecture that TransformerLens knows
prompts      the prompts, the tokenizers with and without BOS
verify       records one model in several ways and compares every site
run_all      all architectures, into benchmarks/results/architectures
page         docs/architectures.md from these documents
"""
