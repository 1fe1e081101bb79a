"""A scenario file: words, models, loading. Every default of barometer is in its models."""
