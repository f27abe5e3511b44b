#!/usr/bin/env python3
"""Draws what `tmux capture-pane -e -p` printed: ansi2png.py COLUMNS ROWS IN.ansi OUT.png (needs Pillow, DejaVu fonts)."""

import re
import sys
from itertools import zip_longest

from PIL import Image, ImageDraw, ImageFont

SIZE = 16
FONTS = "/usr/share/fonts/truetype/dejavu/DejaVuSansMono%s.ttf"
BACK, FORE = (24, 26, 31), (214, 217, 224)
BASIC = [
    (36, 39, 46), (224, 108, 117), (152, 195, 121), (229, 192, 123),
    (97, 175, 239), (198, 120, 221), (86, 182, 194), (200, 204, 212),
    (108, 114, 128), (240, 138, 146), (174, 214, 146), (240, 208, 148),
    (130, 195, 247), (214, 150, 234), (118, 206, 216), (255, 255, 255),
]


def indexed(n):
    """A colour of the table of 256."""
    if n < 16:
        return BASIC[n]
    if n > 231:
        return (8 + 10 * (n - 232),) * 3
    level = lambda v: 55 + 40 * v if v else 0
    n -= 16
    return level(n // 36), level(n // 6 % 6), level(n % 6)


class Style:
    def __init__(self):
        self.reset()

    def reset(self):
        self.fore, self.back = FORE, BACK
        self.bold = self.dim = self.reverse = self.underline = False

    def apply(self, codes):
        codes = iter(codes)
        for code in codes:
            if code == 0:
                self.reset()
            elif code == 1:
                self.bold = True
            elif code == 2:
                self.dim = True
            elif code == 4:
                self.underline = True
            elif code == 7:
                self.reverse = True
            elif code == 22:
                self.bold = self.dim = False
            elif code == 24:
                self.underline = False
            elif code == 27:
                self.reverse = False
            elif 30 <= code <= 37:
                self.fore = BASIC[code - 30]
            elif 90 <= code <= 97:
                self.fore = BASIC[code - 82]
            elif 40 <= code <= 47:
                self.back = BASIC[code - 40]
            elif 100 <= code <= 107:
                self.back = BASIC[code - 92]
            elif code == 39:
                self.fore = FORE
            elif code == 49:
                self.back = BACK
            elif code in (38, 48):
                kind = next(codes)
                color = indexed(next(codes)) if kind == 5 else (next(codes), next(codes), next(codes))
                if code == 38:
                    self.fore = color
                else:
                    self.back = color

    def colors(self):
        fore, back = (self.back, self.fore) if self.reverse else (self.fore, self.back)
        if self.dim:
            fore = tuple((6 * f + 4 * b) // 10 for f, b in zip(fore, back))
        return fore, back


def main(columns, rows, source, target):
    fonts = {bold: ImageFont.truetype(FONTS % ("-Bold" if bold else ""), SIZE) for bold in (False, True)}
    width, height, edge = round(fonts[False].getlength("M")), SIZE + 4, 10
    image = Image.new("RGB", (columns * width + 2 * edge, rows * height + 2 * edge), BACK)
    draw = ImageDraw.Draw(image)
    style = Style()
    for row, line in enumerate(open(source, encoding="utf-8").read().split("\n")[:rows]):
        column = 0
        for text, codes in zip_longest(*[iter(re.split(r"\x1b\[([0-9;:]*)m", line))] * 2):
            for character in text:
                fore, back = style.colors()
                x, y = edge + column * width, edge + row * height
                draw.rectangle((x, y, x + width - 1, y + height - 1), fill=back)
                draw.text((x, y), character, fill=fore, font=fonts[style.bold])
                if style.underline:
                    draw.line((x, y + height - 2, x + width - 1, y + height - 2), fill=fore)
                column += 1
            if codes is not None:
                style.apply([int(code or 0) for code in re.split("[;:]", codes)])
    image.quantize(64).save(target, optimize=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:5])
