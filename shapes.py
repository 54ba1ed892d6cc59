"""`shapes`: ten classes of drawn shapes over textured clutter, 32x32 RGB, rendered from a seed. No download, no licence.

Each image is a textured ground with stray strokes, one filled shape at a random place, size, angle and stretch in a
colour near the ground's, more strokes that cross it, uneven light and noise. The difficulty is set so that a linear classifier
on the pixels learns little and a convolutional network needs about as many images as on CIFAR-10.
"""
import cv2
import numpy as np

CLASSES = ("circle", "square", "triangle", "star", "cross", "ring", "crescent", "arrow", "heart", "hourglass")
VERSION = 1  # raise it with every change of what is drawn: caches carry it in their names

SIDE = 32  # pixels
_BLOCK = 256  # images that share one random generator
_OVERSAMPLE = 2  # shapes are drawn this much larger, then averaged down
_SUBPIXEL_BITS = 4  # OpenCV's fixed-point coordinates
_CONTRAST = (26.0, 75.0)  # distance of the shape's colour from the ground's, in RGB units of 0..255


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
        "cross": [np.array([[-1, -3], [1, -3], [1, -1], [3, -1], [3, 1], [1, 1],
                            [1, 3], [-1, 3], [-1, 1], [-3, 1], [-3, -1], [-1, -1]]) / 3.0],
        "ring": [_arc(0, 360, 1.0), _arc(0, 360, 0.55)],
        "crescent": [np.concatenate([_arc(50, 310, 1.0), _arc(290, 70, 0.82, (0.37, 0.0))])],
        "arrow": [np.array([[-1.1, -0.28], [0.1, -0.28], [0.1, -0.85], [1.1, 0], [0.1, 0.85], [0.1, 0.28], [-1.1, 0.28]])],
        "heart": [heart / 15.5 + [0.0, 0.15]],
        "hourglass": [np.array([[-0.75, -1], [0.75, -1], [0.1, 0], [0.75, 1], [-0.75, 1], [-0.1, 0]])],
    }
    return [polygons[name] for name in CLASSES]


_OUTLINES = _outlines()


def _texture(rng: np.random.Generator, strength: float) -> np.ndarray:
    """Smooth colour noise plus a grating: float32 (SIDE, SIDE, 3) around 0."""
    cells = int(rng.integers(3, 9))
    noise = rng.standard_normal((cells, cells, 3), dtype=np.float32)
    texture = cv2.resize(noise, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC) * strength
    if rng.random() < 0.5:
        angle, wavelength, phase = rng.uniform(0, np.pi), rng.uniform(4, 12), rng.uniform(0, 2 * np.pi)
        steps = np.arange(SIDE, dtype=np.float32) * (2 * np.pi / wavelength)
        wave = np.sin(steps[:, None] * np.sin(angle) + steps[None, :] * np.cos(angle) + phase, dtype=np.float32)
        texture += wave[..., None] * (rng.standard_normal(3, dtype=np.float32) * strength)
    return texture


def _strokes(image: np.ndarray, rng: np.random.Generator, count: int, color_spread: float) -> None:
    """Draw stray bent lines over the image: edges that belong to no shape."""
    for _ in range(count):
        start = rng.uniform(0, SIDE, 2)
        heading = rng.uniform(0, 2 * np.pi)
        turns = heading + np.cumsum(rng.uniform(-0.8, 0.8, 3))
        length = rng.uniform(3, 8)
        path = np.cumsum(np.concatenate([start[None], length * np.stack([np.cos(turns), np.sin(turns)], 1)]), axis=0)
        near = image[int(start[1]), int(start[0])]
        color = near + rng.standard_normal(3) * color_spread
        points = np.rint(path * 2**_SUBPIXEL_BITS).astype(np.int32)
        cv2.polylines(image, [points], False, color.tolist(), int(rng.integers(1, 3)), cv2.LINE_8, _SUBPIXEL_BITS)


def _shape_mask(rng: np.random.Generator, label: int) -> np.ndarray:
    """How much of each pixel the shape covers: float32 (SIDE, SIDE) in 0..1."""
    radius = rng.uniform(6.5, 12.0)
    angle = rng.uniform(0, 2 * np.pi)
    stretch = np.exp(rng.uniform(-0.2, 0.2))
    tilt = rng.uniform(-0.2, 0.2)
    cos, sin = np.cos(angle), np.sin(angle)
    matrix = radius * np.array([[cos, -sin], [sin, cos]]) @ np.array([[stretch, tilt], [0.0, 1 / stretch]])
    center = rng.uniform(radius, SIDE - radius, 2)
    scale = _OVERSAMPLE * 2**_SUBPIXEL_BITS
    polygons = [np.rint((outline @ matrix.T + center) * scale).astype(np.int32) for outline in _OUTLINES[label]]
    large = np.zeros((SIDE * _OVERSAMPLE, SIDE * _OVERSAMPLE), np.uint8)
    cv2.fillPoly(large, polygons, 255, cv2.LINE_AA, _SUBPIXEL_BITS)
    return cv2.resize(large, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def _render_one(rng: np.random.Generator, label: int) -> np.ndarray:
    """One image: uint8 (SIDE, SIDE, 3)."""
    ground_color = rng.uniform(50, 205, 3).astype(np.float32)
    direction = rng.standard_normal(3)
    contrast = rng.uniform(*_CONTRAST)
    shape_color = ground_color + (direction * contrast / np.linalg.norm(direction)).astype(np.float32)
    image = ground_color + _texture(rng, rng.uniform(5, 22))
    _strokes(image, rng, int(rng.integers(2, 7)), 40.0)
    cover = _shape_mask(rng, label)[..., None]
    image += cover * (shape_color + _texture(rng, rng.uniform(3, 12)) - image)
    _strokes(image, rng, int(rng.integers(0, 3)), 30.0)
    image += rng.standard_normal(image.shape, dtype=np.float32) * rng.uniform(2, 9)
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
