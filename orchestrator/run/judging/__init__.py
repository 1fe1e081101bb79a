"""Judge what was recorded: runs, matrices, folders of either."""
