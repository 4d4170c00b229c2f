"""New stores, blocks of rows, label columns.

create               create()
writer               ActivationWriter
buffers              the buffer of a block, which the caller fills
write_queue          background threads that write and commit
label_columns        label columns checked, written, read, compared
quantization_error   int8 errors of a stage
relabel              relabel()
label_reconciliation types and orders of labels of a table against those of the store
"""
