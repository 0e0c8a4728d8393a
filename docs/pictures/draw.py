#!/usr/bin/env python3
"""Draws the pictures of the documentation from the recorded figures and terminals beside this script.

    python3 docs/pictures/draw.py            write the SVG files
    python3 docs/pictures/draw.py --check    fail when one of them is not what would be written

Only Python's standard library is used.
"""

import os
import sys

import bars
import legs
import terminal

PICTURES = {
    "legs.svg": legs.draw,
    "cpu.svg": bars.draw_cpu,
    "prefill-fails.svg": bars.draw_faults,
    "terminal.svg": terminal.draw,
}


def main():
    folder = os.path.dirname(os.path.abspath(__file__))
    stale = []
    for name, draw in PICTURES.items():
        path, drawn = os.path.join(folder, name), draw(folder)
        if "--check" not in sys.argv:
            with open(path, "w", encoding="utf-8", newline="\n") as file:
                file.write(drawn)
            continue
        with open(path, encoding="utf-8", newline="") as file:
            if file.read() != drawn:
                stale.append(name)
    if stale:
        sys.exit(f"not what the script draws: {', '.join(stale)}; run docs/pictures/draw.py")


if __name__ == "__main__":
    main()
