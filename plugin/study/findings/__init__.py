"""Results of a study as numbers, sentences and a report.

analyses     the analyses of a study
headline     headline numbers with interval and null
positions    the effect by token and template, and after more training
forgetting   whether entities that look recent are still known
correlation  rank correlation within strata
conflicts    which of two answers survives
self_report  accuracy of the self-report
seeds        headline numbers over several seeds
output       summary.json and the report
"""
