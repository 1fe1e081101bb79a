"""Kernel sources: find them, configure and build them."""
