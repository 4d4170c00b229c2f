"""A store as a torch Dataset or as an ActivationCache.

convert        torch_dataset() and to_activation_cache()
torch_dataset  ActivationDataset and ShuffledBatches
torch_reader   one lazy array read as samples
"""
