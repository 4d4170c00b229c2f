"""A store as a torch Dataset or as an ActivationCache, existing activations as a store, and shared stores.

convert              torch_dataset() and to_activation_cache()
torch_dataset        ActivationDataset
torch_batches        ShuffledBatches, and their position in an epoch
torch_memory         memory of batches
torch_normalization  mean, mean norm and scale of samples
torch_samples        numbered samples, of which some may not exist
torch_reader         one lazy array read as samples
from_arrays          from_arrays(): existing activations into a store
array_sources        arrays of NumPy, torch, dask, zarr and xarray, read by rows
array_variables      what these arrays mean: dims, variables, rows
array_files          npy, npz, safetensors and datasets on disk as arrays
push                 push(): a shared copy of a store with a card
card                 the card of a shared store
"""
