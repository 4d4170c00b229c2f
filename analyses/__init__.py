"""Out-of-core analyses over all layers and stages of a store, or of any DataArray with the same dims (no torch)."""
