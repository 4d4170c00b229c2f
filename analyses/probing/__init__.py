"""What the probe verbs share: pairs, folds, plans, scores, matching."""
