"""What a program writes of docs/: references from the models, outputs and pictures of runs."""
