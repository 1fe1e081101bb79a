"""The conditions of a comparison, and what differs between its arms."""
