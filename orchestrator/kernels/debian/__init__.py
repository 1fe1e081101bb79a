"""Debian's packages and systems: apt, kernel packages, bootstrapped roots."""
