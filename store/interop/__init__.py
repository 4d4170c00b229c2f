"""Other formats: exported arrays, icechunk, an xarray engine.

export         .npy and .safetensors
icechunk       finished stages as icechunk commits
xarray_engine  xr.open_dataset(engine="stratalens")
"""
