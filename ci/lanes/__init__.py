"""The test runner: which lanes run, what is proven by content, and what each lane may cost."""
