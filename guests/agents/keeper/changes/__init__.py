"""Each kind of change: how it is made, and how it is put back."""
