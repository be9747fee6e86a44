"""``python -m ctgrounding``."""

from ctgrounding.cli import main

if __name__ == "__main__":
    main()
