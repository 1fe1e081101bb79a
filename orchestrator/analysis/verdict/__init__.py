"""From samples of two arms to a verdict."""
