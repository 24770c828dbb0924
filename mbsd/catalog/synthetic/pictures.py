"""The synthetic shop's pictures: one garment each, drawn large and plain, so that 64 pixels show its attributes.

Shapes live in a unit garment (x to the right and y down, both about -1 … 1) that an affine map places on the canvas.
"""

from __future__ import annotations

import io
import math
import random
from collections.abc import Sequence

from PIL import Image, ImageDraw

from mbsd.catalog.synthetic.words import BOTTOMS, COLLAR, COLOUR, PATTERN, SLEEVE

Colour = tuple[int, int, int]
Points = list[tuple[float, float]]

SUPERSAMPLING = 2
JPEG_QUALITY = 90
# In the order of `Vocabulary.values[COLOUR]`.
COLOURS: tuple[Colour, ...] = (
    (205, 35, 40),
    (240, 125, 25),
    (245, 215, 55),
    (45, 145, 65),
    (40, 90, 200),
    (125, 60, 165),
    (35, 35, 40),
    (243, 243, 240),
)
BACKGROUNDS: tuple[Colour, ...] = (
    (226, 221, 212),
    (203, 214, 222),
    (222, 205, 205),
    (207, 218, 203),
    (176, 178, 184),
    (150, 140, 130),
    (196, 186, 160),
    (120, 130, 140),
)
WHITE: Colour = (242, 242, 242)
TSHIRT, SHIRT, DRESS, SWEATER, JACKET, SWEATSHIRT, SKIRT, TROUSERS = range(8)
HEM = {TSHIRT: 0.52, SHIRT: 0.78, SWEATER: 0.62, JACKET: 0.66, SWEATSHIRT: 0.60, DRESS: 1.0}


def draw_item(rng: random.Random, codes: Sequence[int], category: int, side: int) -> bytes:
    """Return the JPEG (side x side pixels) of a garment with these attribute codes (see `words.Vocabulary.values`).

    Position, size, tilt, background and shade are drawn from `rng`; bottoms have neither collar nor sleeve.
    """
    canvas = side * SUPERSAMPLING
    colour = _jitter(rng, COLOURS[codes[COLOUR]], 12)
    far = [b for b in BACKGROUNDS if sum(abs(x - y) for x, y in zip(b, colour, strict=True)) > 110]
    background = _jitter(rng, rng.choice(far), 10)
    image = Image.new("RGB", (canvas, canvas), background)
    floor = round(canvas * rng.uniform(0.72, 0.95))
    ImageDraw.Draw(image).rectangle((0, floor, canvas, canvas), fill=_shade(background, rng.uniform(0.86, 0.96)))

    pen = _Pen(image, rng, canvas, colour)
    outlines = _outlines(category, codes[SLEEVE])
    hood = codes[COLLAR] == 3 and category not in BOTTOMS
    if hood:  # behind the shoulders
        pen.ellipse(0.0, -0.74, 0.37, 0.34, pen.colour)
        pen.ellipse(0.0, -0.68, 0.24, 0.24, _shade(colour, 0.5))
    mask = Image.new("L", image.size, 0)
    painter = ImageDraw.Draw(mask)
    for points in outlines:
        painter.polygon(pen.place(points), fill=255)
    image.paste(_fabric(rng, codes[PATTERN], pen, canvas), (0, 0), mask)
    for points in outlines:
        pen.line([*points, points[0]], 0.02)
    _details(pen, category, _shade(colour, 0.62))
    if category not in BOTTOMS:
        _collar(pen, codes[COLLAR], _shade(background, 0.55))
    buffer = io.BytesIO()
    image.reduce(SUPERSAMPLING).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


class _Pen:
    """Draws shapes, given in the unit garment's coordinates, on the canvas."""

    def __init__(self, image: Image.Image, rng: random.Random, canvas: int, colour: Colour):
        self.draw = ImageDraw.Draw(image)
        self.unit = canvas * rng.uniform(0.42, 0.47)
        self.x = canvas * rng.uniform(0.46, 0.54)
        self.y = canvas * rng.uniform(0.50, 0.54)
        angle = math.radians(rng.uniform(-4, 4))
        self.cos, self.sin = math.cos(angle) * self.unit, math.sin(angle) * self.unit
        self.colour = colour
        self.edge = _shade(colour, 0.55) if sum(colour) > 150 else (100, 100, 105)
        # White on dark cloth, dark on light cloth: the pattern contrasts and the cloth keeps its colour.
        self.contrast = _shade(colour, 0.3) if 0.3 * colour[0] + 0.6 * colour[1] + 0.1 * colour[2] > 170 else WHITE

    def place(self, points: Points) -> Points:
        return [(self.x + px * self.cos - py * self.sin, self.y + px * self.sin + py * self.cos) for px, py in points]

    def polygon(self, points: Points, fill: Colour, edge: Colour | None = None) -> None:
        self.draw.polygon(self.place(points), fill=fill)
        self.line([*points, points[0]], 0.018, edge)

    def line(self, points: Points, width: float, fill: Colour | None = None) -> None:
        self.draw.line(
            self.place(points), fill=fill or self.edge, width=max(1, round(width * self.unit)), joint="curve"
        )

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: Colour) -> None:
        turns = [2 * math.pi * k / 32 for k in range(32)]
        self.polygon([(x + rx * math.cos(t), y + ry * math.sin(t)) for t in turns], fill)


def _fabric(rng: random.Random, pattern: int, pen: _Pen, canvas: int) -> Image.Image:
    """Return a canvas full of cloth; stripes are about 1/7 of the body's width: 4 pixels of a picture of 64."""
    fabric = Image.new("RGB", (canvas, canvas), pen.colour)
    draw = ImageDraw.Draw(fabric)
    period = pen.unit * rng.uniform(0.26, 0.30)
    phase = rng.uniform(0, period)
    steps = [phase + k * period for k in range(-1, math.ceil(canvas / period) + 1)]
    if pattern == 1:  # striped
        for y in steps:
            draw.rectangle((0, y, canvas, y + 0.42 * period), fill=pen.contrast)
    elif pattern == 2:  # dotted, every other row shifted
        radius = 0.29 * period
        for row, y in enumerate(steps):
            for x in steps:
                cx = x + (row % 2) * period / 2
                draw.ellipse((cx - radius, y - radius, cx + radius, y + radius), fill=pen.contrast)
    elif pattern == 3:  # checked
        for y in steps:
            draw.rectangle((0, y, canvas, y + 0.26 * period), fill=pen.contrast)
            draw.rectangle((y, 0, y + 0.26 * period, canvas), fill=pen.contrast)
    elif pattern == 4:  # diagonal
        slanted = 1.35 * period
        for k in range(-math.ceil(canvas / slanted), math.ceil(canvas / slanted) + 1):
            x = phase + k * slanted
            draw.line((x, 0, x + canvas, canvas), fill=pen.contrast, width=round(0.40 * period))
    elif pattern == 5:  # two-tone: the lower part in the other colour
        split = pen.y + pen.unit * rng.uniform(0.05, 0.15)
        draw.rectangle((0, split, canvas, canvas), fill=pen.contrast)
    return fabric


def _outlines(category: int, sleeve: int) -> list[Points]:
    if category == SKIRT:
        return [_mirrored([(0.36, -0.75), (0.78, 0.75)])]
    if category == TROUSERS:
        return [_mirrored([(0.42, -0.92), (0.58, 1.0), (0.16, 1.0), (0.0, -0.15)])]
    shoulder = 0.36 if sleeve == 2 else 0.46
    hem = HEM[category]
    sides: Points = [(0.46, hem)]
    if category == DRESS:
        sides = [(0.36, 0.02), (0.72, hem)]
    body = _mirrored([(0.17, -0.80), (shoulder, -0.70), (0.44, -0.30), *sides])
    if sleeve == 2:
        return [body]
    arm: Points = (
        [(0.46, -0.70), (0.95, 0.42), (0.74, 0.52), (0.44, -0.22)]
        if sleeve == 0
        else [(0.46, -0.70), (0.84, -0.26), (0.64, -0.08), (0.44, -0.26)]
    )
    return [arm, [(-x, y) for x, y in arm], body]


def _details(pen: _Pen, category: int, dark: Colour) -> None:
    """Draw the details by which the kinds of clothes differ, besides their outline."""
    if category == SHIRT:
        pen.line([(0.0, -0.5), (0.0, HEM[SHIRT])], 0.02)
        for k in range(5):
            pen.ellipse(0.05, -0.35 + 0.25 * k, 0.03, 0.03, WHITE)
    elif category == DRESS:
        pen.polygon(_mirrored([(0.37, -0.05), (0.37, 0.07)]), dark)
    elif category == SWEATER:
        pen.polygon(_mirrored([(0.47, 0.50), (0.43, 0.66)]), dark)
        for k in range(-4, 5):
            pen.line([(0.1 * k, 0.51), (0.1 * k, 0.65)], 0.02)
    elif category == JACKET:
        pen.polygon(_mirrored([(0.05, -0.55), (0.09, HEM[JACKET])]), (205, 205, 205))
        for x in (-1.0, 1.0):
            pen.line([(0.18 * x, 0.22), (0.36 * x, 0.34)], 0.04)
    elif category == SWEATSHIRT:
        pen.polygon(_mirrored([(0.17, 0.12), (0.30, 0.44)]), dark)
    elif category == SKIRT:
        pen.polygon(_mirrored([(0.37, -0.78), (0.39, -0.62)]), dark)
    elif category == TROUSERS:
        pen.polygon(_mirrored([(0.43, -0.95), (0.44, -0.80)]), dark)


def _collar(pen: _Pen, collar: int, inside: Colour) -> None:
    if collar == 0:  # crew neck: a shallow round opening with a rib
        arc = [(0.25 * math.cos(t), -0.80 + 0.25 * math.sin(t)) for t in (math.pi * k / 16 for k in range(17))]
        pen.polygon([*arc, (-0.17, -0.82), (0.17, -0.82)], inside)
        pen.line(arc, 0.075, pen.edge)
    elif collar == 1:  # V-neck: a deep wedge
        pen.polygon([(0.21, -0.81), (0.0, -0.20), (-0.21, -0.81)], inside)
        pen.line([(0.22, -0.81), (0.0, -0.19), (-0.22, -0.81)], 0.06, pen.edge)
    elif collar == 2:  # turn-down: two light flaps
        pen.polygon([(0.18, -0.84), (0.0, -0.58), (-0.18, -0.84)], inside)
        for x in (-1.0, 1.0):
            flap = [(0.15 * x, -0.92), (0.0, -0.60), (0.17 * x, -0.38), (0.38 * x, -0.66)]
            pen.polygon(flap, (228, 228, 222), (70, 70, 75))
    else:  # the hood itself lies behind; its mouth and strings in front
        mouth = [(0.24 * math.cos(t), -0.70 + 0.18 * math.sin(t)) for t in (math.pi * k / 16 for k in range(17))]
        pen.polygon([*mouth, (-0.22, -0.76), (0.22, -0.76)], _shade(pen.colour, 0.5))
        for x in (-0.1, 0.1):
            pen.line([(x, -0.55), (x * 1.2, -0.18)], 0.045, (70, 70, 75) if sum(pen.colour) > 330 else WHITE)


def _mirrored(right: Points) -> Points:
    """Return a closed outline, given its right half from top to bottom."""
    return [*right, *((-x, y) for x, y in reversed(right))]


def _shade(colour: Colour, factor: float) -> Colour:
    return (round(colour[0] * factor), round(colour[1] * factor), round(colour[2] * factor))


def _jitter(rng: random.Random, colour: Colour, amount: int) -> Colour:
    red, green, blue = (min(255, max(0, channel + rng.randint(-amount, amount))) for channel in colour)
    return (red, green, blue)
