"""Run the cases whose names begin with one of the arguments, and print what each found, or its error: {name: {...}}."""

import ctypes
import json
import os
import sys
import tempfile
import traceback
from pathlib import Path

from tests.fake_cuda import build


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        ctypes.CDLL(os.environ.get("FAKE_CUDA") or str(build(Path(folder))))
    from tests.fake_cuda.cases import CASES  # imports PyTorch, which must find the device loaded

    found = {}
    for name in (n for n in CASES if n.startswith(tuple(sys.argv[1:]))):
        try:
            found[name] = CASES[name]()
        except Exception as error:
            frames = [f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)]
            found[name] = {"error": f"{type(error).__name__}: {error}", "at": " ".join(frames)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
