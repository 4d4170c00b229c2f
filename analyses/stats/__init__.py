"""Statistics: resampling, moments, scores, intervals.

bootstrap    cluster bootstrap
permutation  permutation of labels, p-values, false discovery rate
intervals    intervals of cross-validated measures
max_t        p of the largest statistic over all places
best_places  table of the best places
moments      sufficient statistics in one pass
scores       accuracy and AUC
estimates    value, interval and null of any result
quantiles    quantiles of statistics by group
"""
