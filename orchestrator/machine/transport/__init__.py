"""Commands on this machine and over SSH, their answers and deadlines."""
