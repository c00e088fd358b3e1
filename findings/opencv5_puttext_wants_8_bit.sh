#!/usr/bin/env bash
# OpenCV 5 still draws lines, rectangles and circles into float32 and 16-bit pictures, and refuses text in them, which OpenCV 4 wrote.
#
# opencv-python-headless 5.0.0 against 4.14.0 (numpy 2). In OpenCV 4, putText was drawn as strokes by the code of the other
# shapes, and took every depth that they take. OpenCV 5 has a new text engine with real fonts, which asserts CV_8U; the
# signature is the same, and the shapes beside it are as they were. One would have guessed that what draws a rectangle into a
# mask of weights or a depth map also writes its label. Draw the text into an 8-bit picture and convert that.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat > "$work/try.py" <<'PYTHON'
import sys

import cv2
import numpy as np

SHAPES = {
    "line": lambda image: cv2.line(image, (2, 2), (60, 30), 1, 2),
    "rectangle": lambda image: cv2.rectangle(image, (2, 2), (60, 30), 1, -1),
    "circle": lambda image: cv2.circle(image, (30, 20), 9, 1, -1),
    "putText": lambda image: cv2.putText(image, "text", (5, 30), cv2.FONT_HERSHEY_SIMPLEX, 1, 1, 2),
}
five, held = cv2.__version__.startswith("5"), True
for kind in (np.uint8, np.uint16, np.float32):
    for name, draw in SHAPES.items():
        image = np.zeros((40, 120), kind)
        try:
            draw(image)
            drawn = bool(image.any())
        except cv2.error:
            drawn = False
        print(f"opencv {cv2.__version__}: {name} into {np.dtype(kind)}: {'drawn' if drawn else 'refused'}")
        held &= drawn == (not five or name != "putText" or kind is np.uint8)
sys.exit(0 if held else 1)
PYTHON
for version in 5.0.0 4.14.0; do
    python3 -m venv "$work/$version"
    "$work/$version/bin/pip" install --quiet --disable-pip-version-check "opencv-python-headless==$version.*" "numpy>=2"
    "$work/$version/bin/python" "$work/try.py"
done
echo "as found: text is refused in other than 8-bit pictures by OpenCV 5 alone"
