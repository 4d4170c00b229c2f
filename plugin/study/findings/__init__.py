"""Results of a study as numbers, sentences and a report.

analyses       the analyses of a study
headline       headline numbers with interval and null
positions      the effect by token and template, and after further training
forgetting     recency score and knowledge of answers
correlation    rank correlation within strata
conflicts      the preferred one of two contradicting answers
self_report    accuracy of the self-report
interventions  effects along the recency axis, each against three nulls
seeds          headline numbers over several seeds
output         summary.json and the report
"""
