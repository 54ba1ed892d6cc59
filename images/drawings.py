"""Twenty drawings of the ten classes of CIFAR-10, two of each: something to predict where that data set is not."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE = 32  # pixels
_LARGE = 256  # pixels of a side while drawing
_FRACTION_BITS = 4  # of OpenCV's coordinates

Color = tuple[int, int, int]


class _Canvas:
    """A picture of 100 x 100 units, the origin at the top left, drawn larger than it is then needed."""

    def __init__(self, top: Color, bottom: Color, seed: int) -> None:
        rng = np.random.default_rng(seed)
        down = np.linspace(0, 1, _LARGE, dtype=np.float32)[:, None, None]
        above, below = np.array(top, np.float32), np.array(bottom, np.float32)
        self.image = above + down * (below - above) + np.zeros((1, _LARGE, 1), np.float32)
        for cells, strength in ((5, 12), (20, 9), (64, 7)):  # blotches, as of clouds or leaves
            blotches = rng.normal(0, strength, (cells, cells, 1)).repeat(3, 2).astype(np.float32)
            self.image += cv2.resize(blotches, (_LARGE, _LARGE), interpolation=cv2.INTER_CUBIC)
        self.image = np.ascontiguousarray(self.image.clip(0, 255).astype(np.uint8))

    def _points(self, *points: tuple[float, float]) -> np.ndarray:
        return np.rint(np.array(points) * (_LARGE / 100 * 2**_FRACTION_BITS)).astype(np.int32)

    def area(self, color: Color, *points: tuple[float, float]) -> None:
        cv2.fillPoly(self.image, [self._points(*points)], color, cv2.LINE_AA, _FRACTION_BITS)

    def box(self, color: Color, left: float, top: float, right: float, bottom: float) -> None:
        self.area(color, (left, top), (right, top), (right, bottom), (left, bottom))

    def line(self, color: Color, width: float, *points: tuple[float, float]) -> None:
        cv2.polylines(self.image, [self._points(*points)], False, color, round(width * _LARGE / 100), cv2.LINE_AA, _FRACTION_BITS)

    def oval(self, color: Color, x: float, y: float, width: float, height: float, angle: float = 0) -> None:
        """Centre, half of width and height, degrees clockwise."""
        around = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        turn = np.deg2rad(angle)
        across, down = width * np.cos(around), height * np.sin(around)
        self.area(
            color,
            *zip(x + across * np.cos(turn) - down * np.sin(turn), y + across * np.sin(turn) + down * np.cos(turn), strict=True),
        )

    def legs(self, color: Color, width: float, top: float, bottom: float, *places: float) -> None:
        for place in places:
            self.line(color, width, (place, top), (place + 1, (top + bottom) / 2), (place, bottom))

    def wheels(self, y: float, radius: float, *places: float) -> None:
        for place in places:
            self.oval((25, 25, 28), place, y, radius, radius)
            self.oval((150, 150, 155), place, y, radius / 2, radius / 2)


def _airplane(c: _Canvas, paint: Color, dark: Color) -> None:
    c.area(dark, (45, 46), (62, 46), (50, 22), (42, 22))
    c.area(paint, (14, 50), (10, 30), (18, 30), (28, 46))
    c.oval(paint, 50, 50, 42, 7)
    c.area(dark, (40, 52), (60, 52), (40, 80), (31, 80))
    c.area(dark, (12, 51), (24, 51), (12, 60), (7, 60))
    c.line((70, 80, 100), 2, (24, 48), (80, 48))
    c.oval((60, 70, 90), 87, 48, 3, 2)
    c.oval((80, 85, 95), 49, 64, 6, 3)


def _automobile(c: _Canvas, paint: Color, dark: Color) -> None:
    c.oval((45, 45, 45), 50, 77, 46, 5)
    c.area(paint, (6, 72), (6, 55), (14, 50), (26, 48), (36, 32), (66, 32), (80, 48), (94, 54), (95, 72))
    c.area((60, 75, 90), (31, 48), (39, 36), (50, 36), (50, 48))
    c.area((60, 75, 90), (53, 48), (53, 36), (64, 36), (74, 48))
    c.line(dark, 1.5, (6, 62), (95, 62))
    c.line(dark, 1.2, (52, 36), (52, 70))
    c.oval((250, 240, 180), 92, 57, 3, 2.5)
    c.oval((190, 30, 30), 8, 57, 2, 3)
    c.wheels(72, 10, 25, 76)


def _bird(c: _Canvas, paint: Color, dark: Color) -> None:
    c.line((95, 70, 50), 4, (0, 84), (100, 76))
    c.area(dark, (26, 62), (4, 82), (10, 86), (36, 70))
    c.oval(paint, 48, 56, 24, 16, -28)
    c.oval(dark, 42, 57, 18, 9, -12)
    c.oval(paint, 68, 34, 11, 10.5)
    c.area((225, 160, 50), (78, 31), (91, 36), (78, 39))
    c.oval((15, 15, 15), 71, 32, 2, 2)
    c.line((120, 80, 40), 1.6, (46, 70), (46, 81))
    c.line((120, 80, 40), 1.6, (54, 69), (54, 80))


def _cat(c: _Canvas, paint: Color, dark: Color) -> None:
    c.oval(dark, 50, 98, 36, 26)
    for side in (-1, 1):
        c.area(paint, (50 + 34 * side, 48), (50 + 31 * side, 8), (50 + 6 * side, 28))
        c.area((215, 150, 150), (50 + 29 * side, 38), (50 + 28 * side, 17), (50 + 14 * side, 29))
    c.oval(paint, 50, 53, 35, 29)
    for x in (40, 50, 60):
        c.line(dark, 3, (x, 26), (50 + (x - 50) * 0.7, 38))
    for side in (-1, 1):
        c.line(dark, 2.5, (50 + 34 * side, 52), (50 + 24 * side, 54))
        c.line(dark, 2.5, (50 + 33 * side, 62), (50 + 22 * side, 61))
    for x in (37, 63):
        c.oval((190, 200, 80), x, 50, 6, 5)
        c.oval((10, 10, 10), x, 50, 2.6, 4.6)
    c.oval((240, 235, 230), 50, 69, 14, 9)
    c.area((200, 110, 110), (46, 62), (54, 62), (50, 67))
    for side in (-1, 1):
        c.line((245, 245, 245), 1, (50 + 10 * side, 67), (50 + 44 * side, 62))
        c.line((245, 245, 245), 1, (50 + 10 * side, 70), (50 + 44 * side, 73))


def _deer(c: _Canvas, paint: Color, dark: Color) -> None:
    c.legs(dark, 3, 62, 94, 30, 37, 60, 66)
    c.oval(paint, 48, 58, 25, 12)
    c.oval((235, 225, 210), 24, 58, 4, 7)
    c.area(paint, (58, 56), (72, 60), (80, 32), (70, 30))
    c.oval(paint, 78, 31, 12, 6, 18)
    c.oval(dark, 88, 34, 3, 3)
    c.oval(paint, 67, 26, 6, 3, -30)
    for lean in (-10, 3):
        c.line((150, 125, 95), 2, (73, 26), (72 + lean, 14), (76 + lean, 3))
        c.line((150, 125, 95), 1.6, (72 + lean, 15), (66 + 1.6 * lean, 6))
    c.oval((15, 10, 10), 77, 29, 1.6, 1.6)


def _dog(c: _Canvas, paint: Color, dark: Color) -> None:
    c.oval(paint, 50, 100, 34, 30)
    c.oval(paint, 50, 45, 27, 30)
    for side in (-1, 1):
        c.oval(dark, 50 + 29 * side, 46, 9, 24, -8 * side)
        c.oval((40, 25, 15), 50 + 11 * side, 40, 4, 4)
        c.oval((255, 255, 255), 50 + 11 * side + 1, 38.5, 1.2, 1.2)
    c.oval((240, 230, 215), 50, 61, 15, 14)
    c.line((240, 230, 215), 7, (50, 18), (50, 50))
    c.oval((20, 15, 15), 50, 54, 6.5, 4.5)
    c.line((60, 40, 40), 1.6, (50, 58), (50, 65), (43, 68))
    c.line((60, 40, 40), 1.6, (50, 65), (57, 68))
    c.oval((220, 110, 120), 50, 72, 4.5, 6)


def _frog(c: _Canvas, paint: Color, dark: Color) -> None:
    c.oval(dark, 22, 74, 17, 11, 25)
    c.oval(dark, 78, 74, 17, 11, -25)
    c.oval(paint, 50, 62, 34, 25)
    c.oval((215, 220, 160), 50, 76, 22, 10)
    for side in (-1, 1):
        c.oval(paint, 50 + 18 * side, 36, 10, 10)
        c.oval((225, 190, 60), 50 + 18 * side, 35, 7, 7)
        c.oval((10, 10, 10), 50 + 18 * side, 35, 4, 5)
        c.line(dark, 6, (50 + 26 * side, 76), (50 + 22 * side, 90), (50 + 32 * side, 93))
    c.line(dark, 2, (22, 58), (36, 65), (64, 65), (78, 58))
    for x, y in ((40, 50), (52, 46), (62, 53), (30, 66), (71, 67)):
        c.oval(dark, x, y, 3, 2)


def _horse(c: _Canvas, paint: Color, dark: Color) -> None:
    c.legs(paint, 5, 60, 94, 26, 34, 62, 69)
    c.area(dark, (20, 46), (8, 56), (8, 80), (16, 72), (24, 54))
    c.oval(paint, 46, 54, 29, 14)
    c.area(paint, (54, 48), (74, 60), (84, 24), (68, 14))
    c.oval(paint, 84, 26, 15, 7.5, 48)
    c.area(dark, (56, 44), (60, 30), (70, 10), (76, 12), (70, 28), (62, 50))
    c.area(paint, (73, 16), (74, 5), (80, 14))
    c.oval((15, 10, 10), 81, 21, 1.8, 1.8)
    for x in (26, 34, 62, 69):
        c.box((30, 25, 25), x - 3, 91, x + 3, 96)


def _ship(c: _Canvas, paint: Color, dark: Color) -> None:
    c.box((45, 85, 115), 0, 68, 100, 100)
    for y, x in ((74, 10), (80, 50), (87, 22), (93, 64), (77, 78)):
        c.line((120, 160, 185), 1.4, (x, y), (x + 16, y))
    c.area(paint, (4, 54), (97, 50), (86, 74), (13, 74))
    c.area(dark, (11, 68), (89, 68), (86, 75), (14, 75))
    c.box((240, 240, 238), 20, 42, 66, 54)
    c.box((240, 240, 238), 26, 32, 54, 42)
    for x in (25, 33, 41, 49, 57):
        c.box((60, 75, 95), x, 45, x + 4, 49)
    c.box(dark, 34, 17, 44, 32)
    c.line((70, 70, 75), 1.4, (76, 52), (76, 20))
    c.line((70, 70, 75), 1, (76, 22), (95, 50))


def _truck(c: _Canvas, paint: Color, dark: Color) -> None:
    c.oval((45, 45, 45), 50, 83, 47, 5)
    c.box((235, 235, 232), 4, 22, 62, 70)
    c.line((190, 190, 190), 1.2, (4, 38), (62, 38))
    c.line((190, 190, 190), 1.2, (4, 54), (62, 54))
    c.box((70, 70, 75), 4, 70, 94, 76)
    c.area(paint, (64, 74), (64, 34), (82, 34), (93, 52), (95, 74))
    c.area((60, 80, 100), (69, 51), (69, 39), (80, 39), (88, 51))
    c.oval((250, 240, 180), 92, 66, 2.5, 3)
    c.line(dark, 1.2, (68, 35), (68, 72))
    c.wheels(78, 9, 18, 38, 80)


SKY, SEA_SKY, ROAD, MEADOW, FOREST, ROOM, POND = (
    ((120, 170, 225), (190, 215, 240)),
    ((170, 195, 215), (205, 215, 222)),
    ((165, 175, 180), (105, 105, 108)),
    ((150, 185, 215), (95, 135, 60)),
    ((60, 85, 45), (105, 120, 60)),
    ((165, 140, 115), (120, 95, 75)),
    ((85, 75, 50), (70, 95, 55)),
)
# For each class: how it is drawn; the background, paint and dark paint of each drawing.
_SUBJECTS: tuple[tuple[Callable[[_Canvas, Color, Color], None], tuple, tuple], ...] = (
    (_airplane, (SKY, (238, 240, 243), (165, 172, 182)), (SEA_SKY, (205, 208, 214), (90, 105, 140))),
    (_automobile, (ROAD, (190, 30, 30), (110, 15, 15)), (MEADOW, (45, 75, 150), (20, 35, 80))),
    (_bird, (FOREST, (150, 105, 70), (85, 60, 45)), (SKY, (90, 120, 170), (50, 65, 100))),
    (_cat, (ROOM, (150, 140, 130), (80, 72, 66)), (((210, 205, 200), (160, 150, 140)), (205, 140, 75), (140, 85, 40))),
    (_deer, (FOREST, (155, 110, 70), (110, 75, 48)), (MEADOW, (140, 100, 65), (95, 65, 42))),
    (_dog, (MEADOW, (190, 140, 85), (110, 70, 40)), (ROOM, (225, 215, 200), (120, 85, 60))),
    (_frog, (POND, (95, 140, 50), (60, 95, 35)), (((120, 100, 75), (90, 75, 55)), (125, 130, 65), (80, 80, 40))),
    (_horse, (MEADOW, (120, 70, 40), (45, 28, 20)), (((190, 205, 220), (180, 160, 120)), (190, 185, 180), (110, 105, 100))),
    (_ship, (SKY, (60, 65, 80), (160, 40, 40)), (SEA_SKY, (235, 235, 235), (50, 80, 130))),
    (_truck, (ROAD, (190, 45, 35), (110, 25, 20)), (SKY, (45, 90, 160), (25, 50, 95))),
)


def render() -> tuple[np.ndarray, np.ndarray]:
    """The drawings: uint8 (20, 32, 32, 3), RGB, and int64 labels (20,) into CLASSES."""
    images = []
    for label, (draw, *variants) in enumerate(_SUBJECTS):
        for variant, (background, paint, dark) in enumerate(variants):
            canvas = _Canvas(background[0], background[1], seed=2 * label + variant)
            draw(canvas, paint, dark)
            image = cv2.resize(canvas.image, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
            images.append(image[:, ::-1] if variant else image)
    return np.ascontiguousarray(images), np.repeat(np.arange(len(CLASSES), dtype=np.int64), 2)
