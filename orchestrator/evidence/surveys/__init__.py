"""What is collected of a machine for the doctor and for a profile."""
