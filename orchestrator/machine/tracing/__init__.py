"""Tracing on the host: probes, the profile, instructions, the map agent."""
