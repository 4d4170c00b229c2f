"""Probes against norms, losses and confidence.

controls          controls() and baseline_probe()
control_table     control_table(): the effect that each control leaves
statistics_probe  statistics_probe(): statistics alone
matched_probe     matched_probe(): rows that are matched in their statistics
matched_slab      matched probes of one slab
weighted_probe    weighted_probe(): classes weighted to equal statistics
conditional_test  conditional_test(): the accuracy that the statistics alone would give the probe
residual_probe    residual_probe(): statistics regressed out
matching          joint bins and nearest neighbours
propensity        probability of a class given the statistics, overlap weights
label_draws       labels drawn given the statistics
spline_basis      splines and products of statistics
intervals         placements and widened bootstrap intervals
statistic_values  values of the statistics
"""
