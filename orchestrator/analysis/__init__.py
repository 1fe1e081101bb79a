"""Evidence in, values out. Pure: no I/O beyond reading a TrialDir."""
