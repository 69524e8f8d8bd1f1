"""Every configuration key with its default value, in upstream's names (lib/config/default.py at 7a303139).

Keys that only upstream's training reads are here too, so that its YAML files load unchanged. Our additions are
`DATASET.SKELETON`, `MODEL.SPEC.STEM_CHANNELS`, which upstream fixes at 64, and `TEST.INPUT_SIZES`. docs/settings.md
explains every key.
"""

from __future__ import annotations

from typing import Any

_SPEC: dict[str, Any] = {
    "FINAL_CONV_KERNEL": 1,
    "PRETRAINED_LAYERS": ["*"],
    "STEM_CHANNELS": 64,
    "STAGES": {
        "NUM_STAGES": 3,
        "NUM_MODULES": [1, 4, 3],
        "NUM_BRANCHES": [2, 3, 4],
        "BLOCK": ["BASIC", "BASIC", "BASIC"],
        "NUM_BLOCKS": [[4, 4], [4, 4, 4], [4, 4, 4, 4]],
        "NUM_CHANNELS": [[32, 64], [32, 64, 128], [32, 64, 128, 256]],
        "FUSE_METHOD": ["SUM", "SUM", "SUM"],
    },
    "HEAD_HEATMAP": {"BLOCK": "BASIC", "NUM_BLOCKS": 1, "NUM_CHANNELS": 32, "DILATION_RATE": 1},
    "HEAD_OFFSET": {"BLOCK": "ADAPTIVE", "NUM_BLOCKS": 2, "NUM_CHANNELS_PERKPT": 15, "DILATION_RATE": 1},
}

DEFAULTS: dict[str, Any] = {
    "OUTPUT_DIR": "",
    "NAME": "regression",
    "LOG_DIR": "",
    "DATA_DIR": "",
    "GPUS": (0,),
    "WORKERS": 4,
    "PRINT_FREQ": 20,
    "AUTO_RESUME": False,
    "PIN_MEMORY": True,
    "RANK": 0,
    "VERBOSE": True,
    "DIST_BACKEND": "nccl",
    "MULTIPROCESSING_DISTRIBUTED": True,
    "CUDNN": {"BENCHMARK": True, "DETERMINISTIC": False, "ENABLED": True},
    "MODEL": {"NAME": "hrnet_dekr", "INIT_WEIGHTS": True, "PRETRAINED": "", "NUM_JOINTS": 17, "SPEC": _SPEC},
    "LOSS": {
        "WITH_HEATMAPS_LOSS": True,
        "HEATMAPS_LOSS_FACTOR": 1.0,
        "WITH_OFFSETS_LOSS": True,
        "OFFSETS_LOSS_FACTOR": 1.0,
    },
    "DATASET": {
        "ROOT": "",
        "DATASET": "coco_kpt",
        "DATASET_TEST": "",
        "NUM_JOINTS": 17,
        "SKELETON": "",  # that of DATASET.DATASET; coco; crowdpose; or a YAML file of the joints
        "MAX_NUM_PEOPLE": 30,
        "TRAIN": "train2017",
        "TEST": "val2017",
        "DATA_FORMAT": "",  # zip, jpg (a plain folder), or empty: what is there
        "MAX_ROTATION": 30,
        "MIN_SCALE": 0.75,
        "MAX_SCALE": 1.25,
        "SCALE_TYPE": "short",
        "MAX_TRANSLATE": 40,
        "INPUT_SIZE": 512,
        "OUTPUT_SIZE": 128,
        "FLIP": 0.5,
        "SIGMA": 2.0,
        "CENTER_SIGMA": 4.0,
        "BG_WEIGHT": 0.1,
        "OFFSET_RADIUS": 4,
    },
    "TRAIN": {
        "LR_FACTOR": 0.1,
        "LR_STEP": [90, 110],
        "LR": 0.001,
        "OPTIMIZER": "adam",
        "MOMENTUM": 0.9,
        "WD": 0.0001,
        "NESTEROV": False,
        "GAMMA1": 0.99,
        "GAMMA2": 0.0,
        "BEGIN_EPOCH": 0,
        "END_EPOCH": 140,
        "RESUME": False,
        "CHECKPOINT": "",
        "IMAGES_PER_GPU": 32,
        "SHUFFLE": True,
    },
    "TEST": {
        "IMAGES_PER_GPU": 32,
        "FLIP_TEST": True,
        "SCALE_FACTOR": [1],
        "INPUT_SIZES": "",  # five sizes that follow from DATASET.INPUT_SIZE; `exact`; or `512,768;512,512;...`
        "MODEL_FILE": "",
        "POOL_THRESHOLD1": 300,
        "POOL_THRESHOLD2": 200,
        "NMS_THRE": 0.15,
        "NMS_NUM_THRE": 10,
        "KEYPOINT_THRESHOLD": 0.01,
        "DECREASE": 1.0,
        "MATCH_HMP": False,
        "ADJUST_THRESHOLD": 0.05,
        "MAX_ABSORB_DISTANCE": 75,
        "GUASSIAN_KERNEL": 6,
        "LOG_PROGRESS": True,
    },
    "RESCORE": {
        "VALID": True,
        "GET_DATA": False,
        "END_EPOCH": 20,
        "LR": 0.001,
        "HIDDEN_LAYER": 256,
        "BATCHSIZE": 1024,
        "MODEL_FILE": "",
        "DATA_FILE": "data/rescore_data/rescore_dataset_train_coco_kpt",
    },
}
