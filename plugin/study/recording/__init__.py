"""Recordings of the checkpoints of a study, and their answers.

stores                  the stores of activations
answers                 the likelihood of each candidate answer
self_report             fine-tuning on the question which stage taught an entity, and the answers after it
recency_axis            the direction from the first to the last stage at one place
interventions           steering and ablation along it: self-report and contradicting answers
intervention_questions  their questions, each with two answers
"""
