"""What is measured on the checkpoints: the stores of activations."""
