"""``python -m cfs_tags``: the program, where it is on no path."""

import sys

from cfs_tags.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
