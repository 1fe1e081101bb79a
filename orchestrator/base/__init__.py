"""What every room stands on: errors and their reasons, programs, files, waiting."""
