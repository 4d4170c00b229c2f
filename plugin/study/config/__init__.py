"""Settings of a study.

settings   StudySettings and its parts
presets    named settings
templates  questions, attributes and prompt templates
"""
