"""A run that is handed over as one file, and what comes out of it elsewhere."""
