"""What numbers say: ranks, looks, tails, shapes. Nothing here knows a kernel."""
