"""The `stratalens` command.

app                every command and its arguments
analysis_commands  arguments of analyze, report and steer
capture_jobs       the work of capture, forecast and study
hub_jobs           the work of preflight, and of capture and forecast of hub suites
prompt_file        the prompt table of a run file
store_jobs         the work of verify, analyze, report and explore
steer_job          the work of steer
init_job           the work of init
array_jobs         the work of import and export
answer_table       the table that analyze prints
output             tables, JSON and exit codes
run_file           run files
"""
