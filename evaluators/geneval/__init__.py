"""GenEval: the official verdicts (`logic`), detectors, the colour check, and the calibration of the world's detector."""

ASSET = "mask2former-mmdet"  # in evaluators/assets.yaml
