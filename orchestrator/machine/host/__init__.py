"""A host under test, of any kind: its device, settings, modules, console."""
