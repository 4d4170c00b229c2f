"""A store as a torch dataset or as an ActivationCache.

convert        torch_dataset() and to_activation_cache()
torch_dataset  ActivationDataset and ShuffledBatches
torch_reader   one array of a store read in blocks
"""
