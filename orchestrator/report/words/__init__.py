"""Words and numbers that all reports share."""
