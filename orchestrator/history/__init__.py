"""What many runs tell together: a store of their numbers (`store.py`), filled from evidence."""
