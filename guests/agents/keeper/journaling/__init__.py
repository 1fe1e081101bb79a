"""The records of what was changed, and those that cannot be read."""
