"""terminal.svg: the recorded terminals demo.cast and client.cast as an animation that repeats.

Characters appear at the time at which the terminal got them; nothing is removed, so the screens only scroll. Where
animations are off, the picture is the second terminal at its end.
"""

import json
import os
import re
from html import escape

from svg import number, picture, rect, text

WIDTH = 880
ROWS = 21
LINE = 17.0
CHARACTER = 7.8
LEFT = 20
TOP = 62
FONT = 13
# After the last character, before it begins anew.
HOLD = 5.0
# Between the end of the first terminal and the first character of the second, at most.
SWITCH = 2.5
TICK = 0.05

HIGHLIGHTS = [
    (re.compile(r"^(?:data: )?\{.*$", re.M), "soft"),
    (re.compile(r"^\$ |^> ", re.M), "soft"),
    (re.compile(r"(?<=\$ )(mini-lb|curl)"), "own"),
    (re.compile(r"(?<=\$ )#.*"), "soft"),
    (re.compile(r"^mini-lb  (http\S+)", re.M), "own"),
    (re.compile(r"^prefill  (http\S+)", re.M), "prefill"),
    (re.compile(r"^decode   (http\S+)", re.M), "decode"),
    (re.compile(r'(?<="content":)"[^"]*"(?=\},"log)'), "good"),
    (re.compile(r"\[DONE\]"), "good"),
    (re.compile(r'(?<="message":)"[^"]*"(?=,"type")'), "bad"),
    (re.compile(r"^\d+ after [\d.]+ s", re.M), "bad"),
]


def load(folder, name):
    """The width of a terminal, its characters and the time of each."""
    with open(os.path.join(folder, name), encoding="utf-8") as file:
        header, *events = [json.loads(line) for line in file]
    characters, times = [], []
    for time, _, written in events:
        # A terminal writes CR LF; a CR alone would go back within the line, which no recording here does.
        for character in written.replace("\r\n", "\n"):
            if character in "\r\x1b":
                raise ValueError(f"{name}: control characters are not drawn")
            characters.append(character)
            times.append(round(time / TICK) * TICK)
    return header["width"], "".join(characters), times


def classes(characters):
    """The class of each character."""
    found = ["text"] * len(characters)
    for pattern, name in HIGHLIGHTS:
        for match in pattern.finditer(characters):
            start, end = match.span(match.lastindex or 0)
            found[start:end] = [name] * (end - start)
    return found


def screen(width, characters, times):
    """Runs of characters with one row, time and class, and the number of rows at each time."""
    runs, row, column, scrolls = [], 0, 0, []
    for character, time, name in zip(characters, times, classes(characters)):
        if character == "\n" or column == width:
            row, column = row + 1, 0
            scrolls.append((time, row))
        if character == "\n":
            continue
        last = runs[-1] if runs else None
        if last and last["row"] == row and last["time"] == time and last["class"] == name:
            last["text"] += character
        else:
            runs.append({"row": row, "column": column, "time": time, "class": name, "text": character})
        column += 1
    return runs, scrolls


def keyframes(name, period, steps, attribute):
    """An animation of one attribute that jumps at each of the times."""
    frames = "".join(f"{100 * time / period:.2f}%{{{attribute}:{value}}}" for time, value in steps)
    last = f"100%{{{attribute}:{steps[-1][1]}}}"
    return f"@keyframes {name}{{{frames}{last}}}.{name}{{animation:{name} {number(period)}s step-end infinite}}"


def draw(folder):
    demo, client = (load(folder, name) for name in ("demo.cast", "client.cast"))
    # The second terminal begins when its first command is there; its prompt has waited since the start.
    first = next(time for character, time in zip(client[1][2:], client[2][2:]))
    switch = min(first, demo[2][-1] + SWITCH) - 0.5
    shift = first - switch - 0.5
    client = (client[0], client[1], [max(0, time - shift) for time in client[2]])
    period = max(demo[2] + client[2]) + HOLD

    css, parts, seen = [], [], set()
    for name, terminal in (("demo", demo), ("client", client)):
        runs, scrolls = screen(*terminal)
        drawn = []
        for run in runs:
            tick = round(run["time"] / TICK)
            x, y = LEFT + run["column"] * CHARACTER, TOP + (run["row"] + 1) * LINE
            if not run["text"].strip():
                continue
            lead = len(run["text"]) - len(run["text"].lstrip())
            x += lead * CHARACTER
            drawn.append(
                f'<text x="{number(x)}" y="{number(y)}" class="mono {run["class"]} t{tick}" xml:space="preserve">'
                f'{escape(run["text"].strip(), quote=False)}</text>'
            )
            if tick not in seen:
                seen.add(tick)
                css.append(keyframes(f"t{tick}", period, [(0, 0), (run["time"], 1)], "opacity"))
        steps = [(0, "translateY(0px)")]
        for time, rows in scrolls:
            beyond = max(0, rows + 1 - ROWS)
            move = f"translateY({number(-beyond * LINE)}px)"
            if move != steps[-1][1]:
                if steps[-1][0] == time and len(steps) > 1:
                    steps.pop()
                steps.append((time, move))
        css.append(keyframes(f"scroll-{name}", period, steps, "transform"))
        still = f".scroll-{name}{{transform:{steps[-1][1]}}}"
        css.append(still)
        parts.append(f'<g class="{name}" clip-path="url(#screen)"><g class="scroll-{name}">{"".join(drawn)}</g></g>')

    css.append(".demo{opacity:0}")
    css.append(keyframes("demo", period, [(0, 1), (switch, 0)], "opacity"))
    css.append(keyframes("client", period, [(0, 0), (switch, 1)], "opacity"))
    css.append(f".mono{{font-size:{FONT}px}}")
    css.append("@media(prefers-reduced-motion:reduce){*{animation:none!important}}")

    height = TOP + ROWS * LINE + 20
    frame = [
        rect(12, 12, WIDTH - 24, 32, "grid", 6),
        *(f'<circle cx="{32 + 18 * index}" cy="28" r="5" class="plain"/>' for index in range(3)),
        text(110, 33, "first terminal", "soft small"),
        text(230, 33, "second terminal", "soft small"),
        f'<g class="demo">{text(110, 33, "first terminal", "text small")}</g>',
        f'<g class="client">{text(230, 33, "second terminal", "text small")}</g>',
        f'<clipPath id="screen"><rect x="0" y="{TOP + 4}" width="{WIDTH}" height="{number(ROWS * LINE + 4)}"/></clipPath>',
    ]
    title = "mini-lb demo, a streamed response, and a request whose prefill worker fails"
    return picture(WIDTH, int(height), title, [*frame, *parts], "".join(css))
