"""What tracefs printed: events, histograms, and whether anything was lost."""
