"""cpu.svg and prefill-fails.svg: bars of the figures in cost.json and faults.json."""

import json
import math
import os

from svg import line, number, picture, rect, text

WIDTH = 880
LEFT = 190
BAR = 20
STEP = 27


def figures(folder, name):
    with open(os.path.join(folder, name), encoding="utf-8") as file:
        return json.load(file)


def charted(data):
    """The rows that have a bar, each as its name and the cells of the columns that are drawn."""
    places = [data["columns"].index(name) for name in data["charted"]]
    return [(row["bar"], [row["cells"][place] for place in places]) for row in data["rows"] if "bar" in row]


def group(top, title, entries):
    """A heading, and for each entry its name, its bar and what stands behind the bar."""
    parts = [text(24, top, title, "text bold")]
    for index, (name, colour, end, label, note, broken) in enumerate(entries):
        y = top + 12 + index * STEP
        parts.append(text(LEFT - 12, y + 15, name, "text small" + (" bold" if colour == "own" else ""), "end"))
        parts.append(rect(LEFT, y, end - LEFT, BAR, colour))
        if broken:
            parts += [line(end - 16 - shift, y + BAR + 3, end - 8 - shift, y - 3, "line-card", 4) for shift in (0, 9)]
        parts.append(
            f'<text x="{number(end + 8)}" y="{number(y + 15)}" class="text small"><tspan class="bold">{label}</tspan>'
            f'<tspan class="soft" dx="7">{note}</tspan></text>'
        )
    return parts


def draw_cpu(folder):
    data = figures(folder, "cost.json")
    rows = charted(data)
    right, most = 660, 4
    scale = (right - LEFT) / most
    height_of = 12 + 3 * STEP + 26
    height = 74 + len(rows) * height_of + 44
    bottom = height - 58
    parts = [
        text(24, 34, "CPU time beside nginx and Pingora alone", "title text"),
        text(24, 55, "multiples of nginx; nginx and Pingora forward one leg, mini-lb does two legs and everything else", "soft small"),
    ]
    for mark in range(most + 1):
        x = LEFT + mark * scale
        parts.append(line(x, 68, x, bottom, "line-grid"))
        parts.append(text(x, bottom + 18, f"{mark}×" if mark else "0", "soft small", "middle"))
    for index, (bar, (nginx, pingora, own, absolute)) in enumerate(rows):
        ratio = own.split(" ")[0]
        absolute = absolute.replace(" per", " µs per")
        entries = [
            ("nginx", "plain", LEFT + float(nginx) * scale, f"{nginx}×", "", False),
            ("Pingora alone", "plain", LEFT + float(pingora) * scale, f"{pingora}×", "", False),
            ("mini-lb", "own", LEFT + float(ratio) * scale, f"{ratio}×", f"= {absolute}", False),
        ]
        parts += group(90 + index * height_of, bar, entries)
    parts.append(text(24, height - 16, f"{data['command']}, {data['date']}, {data['machine']}", "soft small"))
    return picture(WIDTH, height, "CPU time beside nginx and Pingora alone", parts)


# What a client got, in the words of the benchmark and in plain ones.
PLAIN = {
    "500": "500 from prefill",
    "502 prefill_lost": "502 prefill_lost",
    "200 cut": "status 200, then cut off",
    "500 x2, 503 unasked x98": "2 × 500, 98 × 503 without asking a worker",
    "502 x2, 503 unasked x98": "2 × 502, 98 × 503 without asking a worker",
}


def draw_faults(folder):
    data = figures(folder, "faults.json")
    rows = charted(data)
    least, most, right = 0.05, data["cap_ms"], 560
    scale = (right - LEFT) / math.log10(most / least)

    def place(value):
        return LEFT + math.log10(value / least) * scale

    height_of = 12 + 4 * STEP + 28
    height = 74 + len(rows) * height_of + 44
    bottom = height - 58
    parts = [
        text(24, 34, "Time until the client knows that prefill has failed", "title text"),
        text(24, 55, "median, logarithmic; broken bars: no response within 5 s, when the benchmark stops waiting", "soft small"),
    ]
    for mark, name in ((0.1, "0.1 ms"), (1, "1 ms"), (10, "10 ms"), (100, "100 ms"), (1000, "1 s"), (5000, "5 s")):
        parts.append(line(place(mark), 68, place(mark), bottom, "line-grid"))
        parts.append(text(place(mark), bottom + 18, name, "soft small", "middle"))
    names = ["mini-lb", "sglang-router", "its --mini-lb", "smg"]
    for index, (bar, cells) in enumerate(rows):
        entries = []
        for name, cell in zip(names, cells):
            colour = "own" if name == "mini-lb" else "plain"
            if cell == "none in 5 s":
                entries.append((name, "bad", right + 50, "none in 5 s", "", True))
                continue
            time, outcome = cell.split(": ", 1)
            median = time.split(" / ")[0]
            entries.append((name, colour, place(float(median)), f"{median} ms", PLAIN[outcome], False))
        parts += group(90 + index * height_of, bar, entries)
    parts.append(text(24, height - 16, f"{data['command']}, {data['date']}, sglang-router 0.3.2, smg 1.13.0", "soft small"))
    return picture(WIDTH, height, "Time until the client knows that prefill has failed", parts)
