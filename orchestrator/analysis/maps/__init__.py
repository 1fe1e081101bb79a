"""Maps from the host's user space: level of the page tables, theory, scaling, breakdown."""
