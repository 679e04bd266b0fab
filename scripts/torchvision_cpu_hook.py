"""Let torchvision import beside a CPU-only torch; copied by scripts/setup into the venv's site-packages.

The torchvision wheel that pip gets is linked against CUDA, so beside a CPU-only torch its compiled operators
do not load and `import torchvision` (hence timm, open_clip, transformers) fails with "operator
torchvision::nms does not exist". Declaring the schemas of the two operators it looks for is enough: all that
this project uses of torchvision is plain Python. Left out: the operators themselves (nms still fails).
"""

import ctypes
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

_keep: list[object] = []  # the declarations vanish with the Library object


def _declare(package: Path) -> None:
    import torch

    try:  # a torchvision that was built for this torch loads, and declares its own operators
        ctypes.CDLL(str(next(package.glob("_C*.so"))))
        return
    except (OSError, StopIteration):
        pass
    if not _keep:
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _keep.append(library)


class _Finder:
    """Declares the operators just before torchvision's own code runs, not when it is only looked up."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != "torchvision":
            return None
        spec = PathFinder.find_spec(name, None, None)
        if spec is None or spec.loader is None or spec.origin is None:
            return None
        package, run = Path(spec.origin).parent, spec.loader.exec_module

        def exec_module(module: object) -> None:
            _declare(package)
            run(module)  # type: ignore[arg-type]

        spec.loader.exec_module = exec_module  # type: ignore[method-assign,assignment]
        return spec


sys.meta_path.insert(0, _Finder())  # type: ignore[arg-type]
