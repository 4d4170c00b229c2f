"""A standalone HTML report.

report             report()
verdict            the answer in one line, and the numbers of the first screen
sections           figures and tables, question by question
control_tables     what each control leaves of an effect
sentences          one computed statement a figure
control_sentences  the statements about controls
phrases            a place, a value with its interval, the size of an effect
header             model, stages, versions, machine
caveats            limitations that follow from the numbers; the control by time
"""
