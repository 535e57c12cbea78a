"""GenEval's official detector, Mask2Former Swin-S on COCO instances, run by mmdet 3.3.0 and its own configuration.

mmdet and mmcv are no part of the suite's lock (mmcv has to be built against torch); `make env-mmdet` adds them to its environment.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from apex.errors import UserError
from apex.weights import take
from evaluators.geneval.checkpoint import read_state
from evaluators.geneval.coco import CLASSES, COLORS
from evaluators.geneval.logic import Detection
from evaluators.geneval.mask2former import Instances, by_class, check_classes

if TYPE_CHECKING:
    from mmengine import Config

CONFIGURATION = "mask2former/mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco.py"


def official_configuration() -> Config:
    """The configuration that mmdet ships.

    Raises:
        UserError: mmdet is not installed.
    """
    try:
        import mmdet
        from mmengine import Config
    except ImportError as error:
        raise UserError(f"mmdet cannot be imported ({error}); `make env-mmdet` installs it, or use --detector transformers") from error
    return Config.fromfile(Path(mmdet.__file__).parent / ".mim/configs" / CONFIGURATION)


def build(config: Config, device: str = "cpu") -> Any:
    """mmdet's network of a configuration, without weights: nothing is fetched."""
    from mmdet.apis import init_detector

    logging.getLogger("mmengine").setLevel(logging.ERROR)
    with warnings.catch_warnings(record=True):  # that no checkpoint is given: we load it ourselves
        return init_detector(config, None, device=device).requires_grad_(False)


class MmdetDetector:
    """`detector(images)` gives, per image, class name -> all 100 detections. One image at a time, as mmdet's own inference does."""

    name = "mmdet"
    classes = CLASSES
    colors = COLORS

    def __init__(self, model: Any) -> None:
        self.model = model

    @classmethod
    def load(cls, path: Path, device: str = "cpu") -> MmdetDetector:
        """Loads mmdet's checkpoint (.pth) into the official configuration.

        Raises:
            UserError: mmdet is not installed or has no operators for the device, or the checkpoint cannot be read, or its tensors are not
                exactly the network's.
        """
        config = official_configuration()
        from mmcv.ops import get_compiling_cuda_version

        if device.startswith("cuda") and get_compiling_cuda_version() == "not available":
            raise UserError(
                f"--device {device}: this mmcv was built for the CPU; build it with FORCE_CUDA=1, or use --detector transformers"
            )
        state = read_state(path)
        check_classes(len(state.get("panoptic_head.cls_embed.bias", ())) - 1, path)
        model = build(config, device)
        take(model, state, path, f"give the weights of {CONFIGURATION}, all and no others")
        return cls(model)

    @torch.no_grad()
    def instances(self, images: np.ndarray) -> list[Instances]:
        """Images uint8 (B, H, W, 3), RGB; mmdet takes BGR."""
        from mmdet.apis import inference_detector

        found = inference_detector(self.model, [np.ascontiguousarray(image[..., ::-1]) for image in images])
        each = [sample.pred_instances for sample in found]
        return [Instances(one.bboxes, one.scores, one.labels, one.masks) for one in each]

    def __call__(self, images: np.ndarray) -> list[dict[str, list[Detection]]]:
        return [by_class(found) for found in self.instances(images)]
