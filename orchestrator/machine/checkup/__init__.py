"""What a machine can do: evidence for the doctor."""
