"""Nights: one run after another, what is remembered of each, and how long its folder stays."""
