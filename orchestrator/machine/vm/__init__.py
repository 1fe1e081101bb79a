"""libvirt, and the domains that it runs."""
