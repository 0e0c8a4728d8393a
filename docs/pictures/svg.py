"""What the pictures share: a card that is readable on light and dark pages, text, boxes and arrows."""

from html import escape

SANS = "system-ui,-apple-system,'Segoe UI','Noto Sans',Helvetica,Arial,sans-serif"
MONO = "ui-monospace,SFMono-Regular,Menlo,Consolas,'Liberation Mono',monospace"

# Names of colours, each with its value on a light and on a dark page.
COLOURS = {
    "card": ("#ffffff", "#0d1117"),
    "edge": ("#d0d7de", "#30363d"),
    "text": ("#1f2328", "#e6edf3"),
    "soft": ("#59636e", "#9198a1"),
    "grid": ("#e4e8ec", "#21262d"),
    "own": ("#8250df", "#a371f7"),
    "prefill": ("#bc4c00", "#f0883e"),
    "decode": ("#0969da", "#58a6ff"),
    "plain": ("#8c959f", "#6e7681"),
    "good": ("#1a7f37", "#3fb950"),
    "bad": ("#cf222e", "#f85149"),
}


def style(extra=""):
    """The style sheet: a class `x` fills with the colour x, `line-x` strokes with it, `wash-x` tints."""
    light, dark = [], []
    for name, values in COLOURS.items():
        for rules, value in zip((light, dark), values):
            rules.append(f".{name}{{fill:{value}}}.line-{name}{{stroke:{value};fill:none}}")
            rules.append(f".wash-{name}{{fill:{value};fill-opacity:.12;stroke:{value};stroke-width:1.5}}")
    return (
        f"<style>text{{font-family:{SANS};font-size:14px}}.mono{{font-family:{MONO}}}.bold{{font-weight:600}}"
        f".title{{font-size:17px;font-weight:600}}.small{{font-size:13px}}"
        f"{''.join(light)}@media(prefers-color-scheme:dark){{{''.join(dark)}}}{extra}</style>"
    )


def picture(width, height, title, parts, extra=""):
    """A whole file: a card with round corners, so that it is readable whatever the page behind it is."""
    card = f'<rect x=".5" y=".5" width="{width - 1}" height="{height - 1}" rx="10" class="card"/>'
    edge = f'<rect x=".5" y=".5" width="{width - 1}" height="{height - 1}" rx="10" class="line-edge"/>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" width="{width}">'
    lines = [head, f"<title>{escape(title)}</title>", style(extra), card, edge, *parts, "</svg>"]
    return "\n".join(lines) + "\n"


def text(x, y, words, classes="text", anchor="start"):
    return f'<text x="{number(x)}" y="{number(y)}" class="{classes}" text-anchor="{anchor}">{escape(words)}</text>'


def rect(x, y, width, height, classes, radius=3):
    return (
        f'<rect x="{number(x)}" y="{number(y)}" width="{number(width)}" height="{number(height)}" '
        f'rx="{radius}" class="{classes}"/>'
    )


def line(x1, y1, x2, y2, classes, width=1, more=""):
    ends = f'x1="{number(x1)}" y1="{number(y1)}" x2="{number(x2)}" y2="{number(y2)}"'
    return f'<line {ends} class="{classes}" stroke-width="{width}"{more}/>'


def arrow(points, colour, width=2, dashes=""):
    """A polyline of horizontal and vertical parts whose end is a triangle."""
    (x0, y0), (x, y) = points[-2:]
    size = 4 + 2 * width
    step_x, step_y = (x > x0) - (x < x0), (y > y0) - (y < y0)
    neck = (x - step_x * size, y - step_y * size)
    wing = (step_y * size * 0.6, step_x * size * 0.6)
    path = " ".join(f"{number(a)},{number(b)}" for a, b in [*points[:-1], neck])
    tip = [(x, y), (neck[0] + wing[0], neck[1] + wing[1]), (neck[0] - wing[0], neck[1] - wing[1])]
    corners = " ".join(f"{number(a)},{number(b)}" for a, b in tip)
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return (
        f'<polyline points="{path}" class="line-{colour}" stroke-width="{width}"{dashed}/>'
        f'<polygon points="{corners}" class="{colour}"/>'
    )


def number(value):
    """Short, and the same on every machine."""
    return f"{value:.1f}".rstrip("0").rstrip(".")
