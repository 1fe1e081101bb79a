"""Findings on what a machine can do."""
