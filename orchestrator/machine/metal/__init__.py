"""Hosts under test that are real machines: changed for a while and put back."""
