"""`python -m orchestrator.cli` is `barometer`."""

from orchestrator.cli.entry import main

if __name__ == "__main__":
    main()
