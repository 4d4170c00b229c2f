"""Other formats: exported arrays, icechunk, an xarray engine.

export         export_array(): .npy and .safetensors
icechunk       complete stages as icechunk commits
xarray_engine  xr.open_dataset(engine="stratalens")
"""
