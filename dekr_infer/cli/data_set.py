"""The data set that a configuration names: its annotation, and its images."""

from __future__ import annotations

from yacs.config import CfgNode

from dekr_infer.config.load import skeleton_of
from dekr_infer.data.coco import DataSet, load_data_set
from dekr_infer.data.sources import ImageFiles, image_source
from dekr_infer.errors import DekrError


def data_set_of(config: CfgNode, category: str | None = None) -> DataSet:
    """Return the annotated images; see `load_data_set`."""
    return load_data_set(config.DATASET.ROOT, config.DATASET.TEST, category, skeleton_of(config))


def image_files_of(config: CfgNode) -> ImageFiles:
    """Return the encoded images.

    Raises:
        ConfigError: DATASET.DATA_FORMAT is unknown.
        DekrError: they are not there, or the zip is damaged.
    """
    return ImageFiles(image_source(config.DATASET.ROOT, config.DATASET.TEST, config.DATASET.DATA_FORMAT))


def image_files_if_there(config: CfgNode) -> ImageFiles | None:
    """Return the encoded images; `None` where they cannot be opened."""
    try:
        return image_files_of(config)
    except DekrError:
        return None
