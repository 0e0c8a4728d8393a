"""legs.svg: how one request becomes two legs and one response."""

from svg import arrow, picture, rect, text

WIDTH, HEIGHT = 880, 330


def box(x, y, width, height, colour, title, *more):
    parts = [rect(x, y, width, height, f"wash-{colour}", 8)]
    parts.append(text(x + width / 2, y + 28, title, "text bold", "middle"))
    for index, words in enumerate(more):
        parts.append(text(x + width / 2, y + 50 + 19 * index, words, "soft small", "middle"))
    return parts


def draw(_folder):
    parts = [
        *box(20, 120, 116, 90, "plain", "client", "any SDK", "or curl"),
        *box(244, 88, 170, 154, "own", "mini-lb", "chooses a pair", "adds three fields", "watches both legs", "merges two responses"),
        *box(650, 24, 210, 92, "prefill", "prefill worker", "computes the prompt", "runs the bootstrap server"),
        *box(650, 214, 210, 92, "decode", "decode worker", "generates the tokens", "asks prefill for the room"),
    ]
    # The client's side.
    parts += [arrow([(136, 148), (244, 148)], "plain"), text(187, 138, "one request", "text small", "middle")]
    parts += [arrow([(244, 188), (136, 188)], "decode"), text(193, 210, "one response", "text small", "middle")]
    # Two legs with the same body.
    parts += [
        arrow([(414, 118), (446, 118), (446, 54), (650, 54)], "own"),
        text(458, 44, "body + room 4570…", "text small"),
        arrow([(414, 212), (446, 212), (446, 276), (650, 276)], "own"),
        text(458, 296, "body + room 4570…", "text small"),
    ]
    # What comes back.
    parts += [
        arrow([(650, 88), (490, 88), (490, 148), (414, 148)], "prefill", 2, "5 4"),
        text(502, 110, "logprobs of the", "text small"),
        text(502, 127, "prompt, or an error", "text small"),
        arrow([(650, 242), (490, 242), (490, 182), (414, 182)], "decode"),
        text(502, 230, "tokens", "text small"),
    ]
    # Between the workers.
    parts += [
        arrow([(718, 214), (718, 116)], "decode", 2, "5 4"),
        text(708, 170, "room", "text small", "end"),
        arrow([(784, 116), (784, 214)], "prefill", 6),
        text(798, 170, "KV cache", "text small"),
    ]
    return picture(WIDTH, HEIGHT, "One request, two legs, one response", parts)
