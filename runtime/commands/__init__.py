"""The command line: options, progress bars, and what the commands say."""

import os

# NumPy and OpenCV bring an OpenBLAS each, whose threads wait busily for products that fid does not ask of them
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
