"""``python -m specpilot``: the program."""

from specpilot.cli.main import main

if __name__ == "__main__":
    main()
