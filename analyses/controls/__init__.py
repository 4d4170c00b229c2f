"""Probes against norms, losses and confidence.

controls          controls(), control_table() and baseline_probe()
control_table     paired effects of several results
statistics_probe  statistics alone
matched_probe     matched rows
matching          bins and nearest neighbours
residual_probe    statistics regressed out
statistic_values  the values of the statistics
"""
