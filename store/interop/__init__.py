"""Other formats: exported arrays, icechunk, an xarray engine.

export         export_array(): .npy and .safetensors
export_labels  export(): arrays with labels and prompts, as files or a folder
push           push_store(): a shared copy in a bucket, a folder or a repository of the hub
push_plan      the files of a shared copy
push_storage   the copy in a bucket or a folder
push_hub       the copy in a repository of the hub
icechunk       complete stages as icechunk commits
xarray_engine  xr.open_dataset(engine="stratalens")
"""
