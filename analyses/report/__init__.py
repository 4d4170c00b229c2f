"""A standalone HTML report.

report     report()
sections   the figures and tables, question by question
sentences  one computed sentence a figure
header     model, stages, versions, machine
caveats    limits of a run that follow from its numbers
"""
