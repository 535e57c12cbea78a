"""Speed of the systems in the paper's Table 1, with random weights: nothing is downloaded. `python -m evaluators.systems`."""
