"""Touches the world: machines, connections, devices, tracing. Collects evidence, never judges."""
