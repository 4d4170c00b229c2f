"""The training-order study: a corpus, sequential fine-tuning, recording, analyses, a report.

Recording your own models does not need this package.

    run        run_study() and run_demo()
    forecast   bytes, tokens and time of a study before it runs
    findings   results as numbers, sentences and a report
    recording  the stores of a study and the answers of its checkpoints
    training   fine-tuning through the stages
    models     the model a study starts from
    corpus     entities, stages and questions
    config     settings, presets and templates
"""
