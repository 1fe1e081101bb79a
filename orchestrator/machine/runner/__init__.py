"""What a run has on the runner: its records, images, accelerator, files."""
