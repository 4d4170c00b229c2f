"""Probes against norms, losses and confidence.

controls          controls() and baseline_probe()
control_table     control_table(): the effect that each control leaves
statistics_probe  statistics_probe(): statistics alone
matched_probe     matched_probe(): rows that are matched in their statistics
residual_probe    residual_probe(): statistics regressed out
matching          joint bins and nearest neighbours
statistic_values  values of the statistics
"""
