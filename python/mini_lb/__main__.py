"""``python -m mini_lb``: becomes the program, with the same arguments."""

import os
import sys

from ._binary import binary

if __name__ == "__main__":
    os.execv(binary(), ["mini-lb", *sys.argv[1:]])
