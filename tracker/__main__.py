"""`python -m tracker`: the same as the command `tracker`. Nothing else belongs here."""

from __future__ import annotations

from tracker.cli import main

if __name__ == "__main__":
    main()
