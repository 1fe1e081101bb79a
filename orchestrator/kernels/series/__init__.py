"""Series of patches: read, check and apply them."""
