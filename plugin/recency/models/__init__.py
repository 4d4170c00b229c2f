"""What training starts from: the base model, its tokenizer, a vocabulary cut to what is in use."""
