"""A kernel that is ready to boot, and the files of its modules."""
