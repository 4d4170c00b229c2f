"""Other formats: exported arrays, icechunk, an xarray engine.

export         export_array(): .npy and .safetensors
export_labels  export(): arrays with labels and prompts, as files or a folder
icechunk       complete stages as icechunk commits
xarray_engine  xr.open_dataset(engine="stratalens")
"""
