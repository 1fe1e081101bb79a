"""Numbers of the kernel's interfaces, reports on its console, units of sizes. Pure."""
