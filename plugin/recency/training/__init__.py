"""Fine-tuning through the stages and after them, with Hugging Face's own Trainer; checkpoints and adapters."""
