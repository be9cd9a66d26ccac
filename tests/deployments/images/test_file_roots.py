"""Files of the server: below configured roots, and nowhere else."""

from pathlib import Path

import pytest

from deployments.errors import ImageSourceError
from deployments.image_config import ImageConfig
from deployments.images.sources import ImageSources
from serve_app.gallery import FOLDER

IMAGE = (FOLDER / "cat-face.png").read_bytes()


async def test_a_server_reads_files_below_its_roots_only(tmp_path: Path) -> None:
    """A file below a root is read; `..`, a link to outside and a sibling folder are not."""
    root, outside = tmp_path / "root", tmp_path / "root-of-others"
    root.mkdir()
    outside.mkdir()
    (root / "in.png").write_bytes(IMAGE)
    (outside / "out.png").write_bytes(IMAGE)
    (root / "link.png").symlink_to(outside / "out.png")
    sources = ImageSources(ImageConfig(file_roots=(str(root),)))
    assert await sources.read(f"file://{root}/in.png") == IMAGE
    hidden = ("root/link.png", "root/../root-of-others/out.png", "root-of-others/out.png")
    for place in hidden:
        with pytest.raises(ImageSourceError, match="is not read"):
            await sources.read(f"file://{tmp_path}/{place}")
    with pytest.raises(ImageSourceError, match="cannot be read"):
        await sources.read(f"file://{root}/%00.png")
    await sources.close()
