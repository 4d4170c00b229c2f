"""Estimators: from rows and targets to coefficients, many problems at a time.

probes          every method behind one call
backend         NumPy or CuPy, scikit-learn or cuML
logistic        logistic regression, two classes and softmax
lbfgs           L-BFGS for many problems
closed_form     ridge, LDA, difference of means
moment_probes   the same from sums of rows
linear_systems  many linear systems at once
gram            Gram matrices by label and training set
gram_gpu        the same, and the linear systems, on a GPU
boosting        gradient-boosted trees on statistics
"""
