"""Modules: rebuild some of a package from changed sources, read their files."""
