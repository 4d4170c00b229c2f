"""Settings of a study.

settings   StudySettings and its blocks
presets    named settings
templates  questions, prompt templates, attribute values
"""
