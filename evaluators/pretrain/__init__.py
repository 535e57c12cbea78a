"""Training of the world's evaluator networks: `python -m evaluators.pretrain {detector,fid,clip} --out DIR`."""
