"""Hosts under test that are VMs of the runner."""
