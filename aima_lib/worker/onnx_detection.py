"""Objects in images: detectors in ONNX, of two families that their outputs tell apart.

CenterNet: a heat map of centres a class and, for each place, the distances to the four sides (outputs that end in `keypoints` and `wh`);
pixels from 0 to 255. YOLO since version 8: one output of rows, four for the box and one a class; pixels from 0 to 1. Labels are a .txt
beside the weights, a line each, or what YOLO's own export wrote into the file.
"""

from __future__ import annotations

import ast
import io
import warnings
from collections.abc import Mapping
from typing import Any

from aima_lib.worker.base import MOST_PIXELS, Alive, Spec, Wrong
from aima_lib.worker.onnx import beside, session

OVERLAP, MOST, CANDIDATES = 0.5, 100, 1000


def load(spec: Spec) -> Detector:
    """The network and its labels."""
    return Detector(spec)


class Detector:
    """One network."""

    def __init__(self, spec: Spec) -> None:
        self._session, self.device = session(spec)
        [self._input, *more] = self._session.get_inputs()
        outputs = {node.name.rpartition("/")[2]: node for node in self._session.get_outputs()}
        shape = [side if isinstance(side, int) else 0 for side in self._input.shape]
        if more or len(shape) != 4 or 3 not in shape:
            raise Wrong(f"it takes {[node.shape for node in self._session.get_inputs()]}; a detector takes one image of three colours")
        self._last = shape[3] == 3 and shape[1] != 3  # colours last
        self._height, self._width = (side or 640 for side in (shape[1:3] if self._last else shape[2:4]))
        self._is_centers = {"keypoints", "wh"} <= set(outputs)
        if self._is_centers:
            self._wanted, count = [outputs["keypoints"].name, outputs["wh"].name], outputs["keypoints"].shape[1]
        else:
            [only, *more] = outputs.values()
            if more or len(only.shape) != 3 or not isinstance(only.shape[1], int) or only.shape[1] < 5:
                raise Wrong(f"its outputs ({', '.join(outputs)}) are neither CenterNet's nor those of YOLO since version 8")
            self._wanted, count = [only.name], only.shape[1] - 4
        self.labels = self._named(spec, int(count))

    def _named(self, spec: Spec, count: int) -> list[str]:
        path = beside(spec, ".txt")
        written = self._session.get_modelmeta().custom_metadata_map.get("names", "")
        if path is not None:
            names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        elif len(written) < 1 << 20 and written.startswith(("{", "[")):
            try:
                read = ast.literal_eval(written)
            except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
                raise Wrong("the labels in it cannot be read") from error
            names = [str(name) for name in (read.values() if isinstance(read, dict) else read)]
        else:
            raise Wrong(f"there are no labels: put a .txt with {count} lines beside the weights")
        if len(names) != count:
            raise Wrong(f"there are {len(names)} labels for {count} classes")
        return names

    def props(self) -> dict[str, Any]:
        """What it knows."""
        return {"labels": self.labels, "modalities": {"image": True}}

    def probe(self) -> None:
        """Look at grey."""
        import numpy

        self._found(numpy.full((self._height, self._width, 3), 127, numpy.uint8))

    def detect(self, image: bytes, asked: Mapping[str, Any], alive: Alive) -> dict[str, Any]:
        """What is in an image, in its own pixels."""
        wanted = set(asked.get("labels") or self.labels)
        if unknown := [label for label in wanted if label not in self.labels]:
            return {"unknown": unknown[0], "labels": self.labels}
        picture = _opened(image)
        alive()
        import numpy

        across, down = picture.width / self._width, picture.height / self._height
        small = numpy.asarray(picture.resize((self._width, self._height), 2))
        scores, kinds, boxes = self._found(small)
        least, rows = float(asked.get("threshold") or 0.0), []
        for place in _distinct(scores, kinds, boxes, least):
            x, y, right, bottom = (
                min(max(float(edge) * scale, 0.0), float(most))
                for edge, scale, most in zip(boxes[place], (across, down) * 2, (picture.width, picture.height) * 2, strict=True)
            )
            label = self.labels[int(kinds[place])]
            if label in wanted:
                box = [round(x, 1), round(y, 1), round(right - x, 1), round(bottom - y, 1)]
                rows.append({"label": label, "confidence": round(float(scores[place]), 4), "box": box})
        return {"detections": rows[:MOST], "width": picture.width, "height": picture.height}

    def _found(self, pixels: Any) -> tuple[Any, Any, Any]:
        """Scores, classes and boxes (left, top, right, bottom in the network's pixels), the surest first."""
        import numpy

        image = pixels.astype(numpy.float32) * (1.0 if self._is_centers else 1 / 255)
        fed = image[None] if self._last else image.transpose(2, 0, 1)[None]
        outputs = self._session.run(self._wanted, {self._input.name: fed})
        scores, kinds, boxes = self._centers(*outputs) if self._is_centers else _rows(outputs[0])
        order = numpy.argsort(-scores)[:CANDIDATES]
        return scores[order], kinds[order], boxes[order]

    def _centers(self, heat: Any, sides: Any) -> tuple[Any, Any, Any]:
        """A centre is where nothing of its class is hotter within one step."""
        import numpy

        heat, sides = heat[0], sides[0]
        padded = numpy.pad(heat, ((0, 0), (1, 1), (1, 1)), constant_values=-numpy.inf)
        rows, columns = heat.shape[1:]
        around = numpy.max([padded[:, y : y + rows, x : x + columns] for y in range(3) for x in range(3)], axis=0)
        kinds, ys, xs = numpy.nonzero((heat >= around) & (heat > 0))
        left, top, right, bottom = sides[:, ys, xs]
        x, y = xs * (self._width / columns), ys * (self._height / rows)
        return heat[kinds, ys, xs], kinds, numpy.stack([x - left, y - top, x + right, y + bottom], axis=1)


def _rows(output: Any) -> tuple[Any, Any, Any]:
    import numpy

    middle, classes = output[0, :4].T, output[0, 4:].T
    half = middle[:, 2:] / 2
    return classes.max(axis=1), classes.argmax(axis=1), numpy.concatenate([middle[:, :2] - half, middle[:, :2] + half], axis=1)


def _distinct(scores: Any, kinds: Any, boxes: Any, least: float) -> list[int]:
    """Places of the boxes to keep: of those of one class that overlap by half, the surest."""
    kept: list[int] = []
    for place in range(len(scores)):
        if scores[place] < least or len(kept) >= MOST * 3:
            break
        same = [other for other in kept if kinds[other] == kinds[place]]
        if all(_overlap(boxes[other], boxes[place]) < OVERLAP for other in same):
            kept.append(place)
    return kept


def _overlap(one: Any, other: Any) -> float:
    across = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    down = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    whole = (one[2] - one[0]) * (one[3] - one[1]) + (other[2] - other[0]) * (other[3] - other[1]) - across * down
    return float(across * down / whole) if whole > 0 else 0.0


def _opened(image: bytes) -> Any:
    """The image, upright and in three colours; one that would unfold to more than 64 million pixels is refused before it does."""
    from PIL import Image, ImageOps

    Image.MAX_IMAGE_PIXELS = MOST_PIXELS
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            opened = Image.open(io.BytesIO(image), formats=("PNG", "JPEG", "WEBP", "GIF", "BMP"))
            return ImageOps.exif_transpose(opened).convert("RGB")
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise Wrong(f"the image has more than {MOST_PIXELS >> 20} million pixels") from error
    except (OSError, ValueError, SyntaxError, TypeError, OverflowError) as error:
        raise Wrong("it is no image: PNG, JPEG, WebP, GIF and BMP can be read") from error
