"""``python -m quoreduce``: the command line."""

import sys

from quoreduce.cli import main

if __name__ == "__main__":  # processes that are spawned import this file, too
    sys.exit(main())
