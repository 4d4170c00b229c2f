"""The corpus of a study: entities, their partition into stages, the questions about them.

corpus     Corpus: entities, stages and questions
sampling   the draw of a corpus from a seed
entities   generated entities, or those of a table
names      aliases with one token count
balance    differences of attributes between stages
conflicts  entities that two stages teach different answers
questions  the questions that checkpoints answer
"""
