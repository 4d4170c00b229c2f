"""A standalone HTML report.

report     report()
sections   figures and tables, question by question
sentences  one computed statement a figure
header     model, stages, versions, machine
caveats    limitations that follow from the numbers; the control by time
"""
