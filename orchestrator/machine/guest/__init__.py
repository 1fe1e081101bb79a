"""The guest that owns the device, and what is run on it."""
