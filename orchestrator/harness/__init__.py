"""What the pytest plugin does: marks, saved runs, claims about a judged run."""
