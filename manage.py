#!/usr/bin/env python
"""Citadel's command line, Django's included; `bin/manage` runs it inside the virtual environment."""

import sys

from citadel.command_line import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
