"""`shapes`: ten classes of drawn shapes over textured clutter, 32x32 RGB, rendered from a seed. No download, no licence.

Each image is a textured ground with stray strokes, one filled and textured shape at a random place, size, angle and stretch
that is lighter or darker than the ground, strokes that may cross it, and noise. Difficulty is set so that a linear classifier on
the pixels learns little and `Net` needs about as many images as on CIFAR-10.
"""

import cv2
import numpy as np

CLASSES = ("circle", "square", "triangle", "star", "cross", "ring", "crescent", "arrow", "heart", "hourglass")
VERSION = 1  # raise it with every change of what is drawn: caches carry it in their names

SIDE = 32  # pixels
_BLOCK = 256  # images that share one random generator
_OVERSAMPLE = 2  # shapes are drawn this much larger, then averaged down
_SUBPIXEL_BITS = 4  # OpenCV's fixed-point coordinates
_CONTRAST = (45.0, 140.0)  # distance of the shape's colour from the ground's, in RGB units of 0..255


def _arc(start: float, stop: float, radius: float = 1.0, center: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
    angles = np.radians(np.linspace(start, stop, 24))
    return np.stack([center[0] + radius * np.cos(angles), center[1] + radius * np.sin(angles)], axis=1)


def _outlines() -> list[list[np.ndarray]]:
    """The closed polygons (K, 2) of each class within about the unit disc; a second polygon cuts a hole."""
    star_radii = np.where(np.arange(10) % 2 == 0, 1.1, 0.45)[:, None]
    star_angles = np.radians(np.arange(10) * 36.0)[:, None]
    t = np.linspace(0.0, 2 * np.pi, 40)
    heart = np.stack([16 * np.sin(t) ** 3, 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)], 1)
    polygons = {
        "circle": [_arc(0, 360, 0.9)],
        "square": [np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * 0.8],
        "triangle": [_arc(0, 360, 1.15)[[0, 8, 16]]],
        "star": [star_radii * np.concatenate([np.cos(star_angles), np.sin(star_angles)], axis=1)],
        "cross": [
            np.array([[-1, -3], [1, -3], [1, -1], [3, -1], [3, 1], [1, 1], [1, 3], [-1, 3], [-1, 1], [-3, 1], [-3, -1], [-1, -1]])
            / 3.0
        ],
        "ring": [_arc(0, 360, 1.0), _arc(0, 360, 0.55)],
        "crescent": [np.concatenate([_arc(50, 310, 1.0), _arc(290, 70, 0.82, (0.37, 0.0))])],
        "arrow": [np.array([[-1.1, -0.28], [0.1, -0.28], [0.1, -0.85], [1.1, 0], [0.1, 0.85], [0.1, 0.28], [-1.1, 0.28]])],
        "heart": [heart / 15.5 + [0.0, 0.15]],
        "hourglass": [np.array([[-0.75, -1], [0.75, -1], [0.1, 0], [0.75, 1], [-0.75, 1], [-0.1, 0]])],
    }
    return [polygons[name] for name in CLASSES]


_OUTLINES = _outlines()


def _texture(rng: np.random.Generator, strength: float) -> np.ndarray:
    """Smooth colour noise and, half the time, a grating: float32 (SIDE, SIDE, 3) around 0, of about `strength`."""
    cells = int(rng.integers(3, 9))
    noise = rng.standard_normal((cells, cells, 3), dtype=np.float32) * np.float32(strength)
    texture = cv2.resize(noise, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    if rng.random() < 0.5:
        angle, phase = rng.uniform(0, 2 * np.pi, 2)
        steps = np.arange(SIDE, dtype=np.float32) * np.float32(2 * np.pi / rng.uniform(4, 12))
        wave = np.sin(np.add.outer(steps * np.float32(np.sin(angle)), steps * np.float32(np.cos(angle)) + np.float32(phase)))
        texture += wave[..., None] * (rng.standard_normal(3, dtype=np.float32) * np.float32(strength))
    return texture


def _draw_strokes(image: np.ndarray, rng: np.random.Generator, count: int, color_spread: float) -> None:
    """Draw `count` stray bent lines over the image: edges that belong to no shape."""
    starts = rng.uniform(0, SIDE, (count, 1, 2))
    turns = np.cumsum(np.concatenate([rng.uniform(0, 2 * np.pi, (count, 1)), rng.uniform(-0.8, 0.8, (count, 2))], axis=1), axis=1)
    segments = rng.uniform(3, 8, (count, 1, 1)) * np.stack([np.cos(turns), np.sin(turns)], axis=2)
    paths = np.cumsum(np.concatenate([starts, segments], axis=1), axis=1)
    points = np.rint(paths * 2**_SUBPIXEL_BITS).astype(np.int32)
    offsets = rng.standard_normal((count, 3)) * color_spread
    widths = rng.integers(1, 3, count)
    for i in range(count):
        color = image[int(starts[i, 0, 1]), int(starts[i, 0, 0])] + offsets[i]
        cv2.polylines(image, [points[i]], False, color.tolist(), int(widths[i]), cv2.LINE_8, _SUBPIXEL_BITS)


def _shape_cover(rng: np.random.Generator, label: int) -> np.ndarray:
    """How much of each pixel the shape covers: float32 (SIDE, SIDE, 1) in 0..1."""
    radius, angle, stretch, tilt = rng.uniform((8.0, 0.0, -0.2, -0.2), (12.0, 2 * np.pi, 0.2, 0.2))
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = radius * rotation @ np.array([[np.exp(stretch), tilt], [0.0, np.exp(-stretch)]])
    center = rng.uniform(radius, SIDE - radius, 2)
    scale = _OVERSAMPLE * 2**_SUBPIXEL_BITS
    polygons = [np.rint((outline @ matrix.T + center) * scale).astype(np.int32) for outline in _OUTLINES[label]]
    large = np.zeros((SIDE * _OVERSAMPLE, SIDE * _OVERSAMPLE), np.uint8)
    cv2.fillPoly(large, polygons, 255, cv2.LINE_AA, _SUBPIXEL_BITS)
    return cv2.resize(large, (SIDE, SIDE), interpolation=cv2.INTER_AREA)[..., None] * np.float32(1 / 255)


def _render_one(rng: np.random.Generator, label: int) -> np.ndarray:
    """One image: uint8 (SIDE, SIDE, 3)."""
    ground_color = rng.uniform(50, 205, 3).astype(np.float32)
    # Lighter or darker in all channels, more or less: a change of hue alone is hard to see, for people too.
    direction = rng.choice((-1.0, 1.0)) + rng.normal(0, 0.6, 3)
    shape_color = ground_color + (direction * rng.uniform(*_CONTRAST) / np.linalg.norm(direction)).astype(np.float32)
    image = ground_color + _texture(rng, rng.uniform(5, 22))
    _draw_strokes(image, rng, int(rng.integers(1, 5)), 40.0)
    cover = _shape_cover(rng, label)
    image += cover * (shape_color + _texture(rng, rng.uniform(3, 12)) - image)
    _draw_strokes(image, rng, int(rng.integers(0, 2)), 30.0)
    image += rng.standard_normal(image.shape, dtype=np.float32) * np.float32(rng.uniform(2, 9))
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def render(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw `count` images: uint8 (count, 32, 32, 3), RGB, and int64 labels (count,) into CLASSES, as balanced as can be.

    The same seed and count give the same images in every run and process.
    """
    labels = np.random.default_rng(seed).permutation(np.arange(count, dtype=np.int64) % len(CLASSES))
    images = np.empty((count, SIDE, SIDE, 3), np.uint8)
    for first in range(0, count, _BLOCK):
        rng = np.random.default_rng([seed, first])
        for i in range(first, min(first + _BLOCK, count)):
            images[i] = _render_one(rng, int(labels[i]))
    return images, labels
