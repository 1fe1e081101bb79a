"""Examples of tests over two kernels (docs/how-to/pytest.md)."""
