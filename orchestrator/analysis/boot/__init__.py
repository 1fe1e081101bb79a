"""A guest boot: its trace, phases, maps and unmaps, their causes and cost."""
