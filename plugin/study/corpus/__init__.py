"""The corpus of a study: made-up entities, their partition into stages, the questions about them.

corpus     Corpus: entities, stages and questions
sampling   a corpus drawn from a seed
entities   made-up entities, or those of a table
names      random names of one token count
balance    whether the stages differ in anything but time
conflicts  entities that are taught two answers
questions  which questions each entity is asked
"""
