"""Write the golden files of all cases, or of those named: needs the extra ``parity``.

cd tests && python -m encoders.make_golden [case ...]
"""

import sys

from . import reference
from .harness import GOLDEN, all_cases, save_golden


def main(names: list[str]) -> None:
    """Write them."""
    cases = all_cases()
    GOLDEN.mkdir(exist_ok=True)
    for name in names or cases:
        module, config, shapes = reference.build(cases[name])
        batch = cases[name].inputs()
        outputs = reference.run(cases[name], module, batch)
        save_golden(cases[name], config, shapes, batch, outputs)
        print(f"{name}: {', '.join(outputs)}")
    if not names:
        for path in GOLDEN.glob("*.safetensors"):
            if path.stem not in cases:
                path.unlink()


if __name__ == "__main__":
    main(sys.argv[1:])
