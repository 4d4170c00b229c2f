"""Statistics: resampling, moments, scores, intervals.

bootstrap  cluster bootstrap, permutation tests, false discovery rate
moments    sufficient statistics in one pass
scores     accuracy and AUC
estimates  value, interval and null of any result
quantiles  quantiles of statistics by group
"""
