"""What is asked of the recordings, and how the answers are written down: numbers, words, report."""
