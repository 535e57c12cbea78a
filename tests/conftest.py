"""Fixtures that several folders of tests share: a whole pipeline of tiny untrained networks, with shards and latents for it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# One thread, here and in the commands that tests start: on two cores more threads only wait for each other.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

RESOLUTION = 32

# ------------------------------------------------------------------------------------------- tests on several processes

# Each process makes a session fixture for itself. Files that share one of minutes run on one process.
TOGETHER = {f"tests/workflow/test_{name}.py": "the killed workflow" for name in ("killed_workflow", "finished_workflow", "report")}

# What takes longest starts first, so that all processes end together. Everything else follows in its usual order.
LONGEST = [
    "the killed workflow",
    "tests/workflow/test_full_scale_workflow.py",
    "tests/workflow/test_ablations.py",
    "tests/workflow/test_add_a_baseline.py",
    "tests/workflow/test_official_evaluators.py",
    "tests/workflow/test_failed_row.py",
    "tests/apex/test_sharding.py",
    "tests/methods/test_conformance.py",
    "tests/apex/test_on_a_pretend_gpu.py",
    "tests/apex/test_stock_pipelines.py",
    "tests/apex/test_train.py",
    "tests/mixture/test_mixture.py",
    "tests/evaluators/test_evaluators_on_a_pretend_gpu.py",
    "tests/paper_tables/test_forest_figures.py",
    "tests/workflow/test_full_scale_profiles.py",
    "tests/apex/test_estimate.py",
    "tests/paper_tables/test_figures_made.py",
]


def together(nodeid: str) -> str:
    """Tests for which this is the same run on one process, in their order: those of a file, or of files that share a fixture."""
    file = nodeid.partition("::")[0]
    return TOGETHER.get(file, file)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(together(item.nodeid), len(place)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return together(nodeid)

    config.option.loadscopereorder = False  # the order is that of `pytest_collection_modifyitems`
    return Together(config, log)


# ------------------------------------------------------------------------------------------------------------ fixtures


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline folder in diffusers' layout with untrained networks: a Sana of 2 layers, a codec to 4x8x8 latents, a T5 of 1 layer.

    Session-wide: copy it before changing it.
    """
    import torch
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler

    from apex.pretrain import autoencoder, denoiser, t5

    folder = tmp_path_factory.mktemp("tiny_pipeline") / "pipeline"
    levels = len(autoencoder.CONFIG["block_out_channels"])
    small = autoencoder.CONFIG | {"block_out_channels": [8] * levels, "norm_num_groups": 4, "latent_channels": 4}
    tokenizer = t5.build_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoencoderKL(**small, sample_size=RESOLUTION).save_pretrained(folder / "vae")
        t5.build_encoder(len(tokenizer), width=16, layers=1).save_pretrained(folder / "text_encoder")
        side = RESOLUTION // 2 ** (levels - 1)
        denoiser.build_sana(4, side, 16, width=32, layers=2).transformer.save_pretrained(folder / "transformer")
    tokenizer.save_pretrained(folder / "tokenizer")
    FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0).save_pretrained(folder / "scheduler")
    return folder


def program(*names: str, package: str) -> str:
    """Where one of these programs is. Without any the test is skipped, but not in CI, which installs it."""
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        (pytest.fail if os.getenv("CI") else pytest.skip)(f"found none of {', '.join(names)}; on Debian: apt-get install {package}")
    return found


@pytest.fixture(scope="session")
def find_program() -> Callable[..., str]:
    """find_program("pdflatex", package="texlive-latex-recommended"): its path, or the test is skipped."""
    return program


@pytest.fixture
def open_page() -> Iterator[Callable[[Path], Any]]:
    """open_page(file): a page of an offline browser; the test fails if a script, a picture or anything else of it does."""
    from playwright.sync_api import sync_playwright

    path, faults = program("chromium", "chromium-browser", "google-chrome", package="chromium"), []
    quiet = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=quiet)
        page = browser.new_context(offline=True, viewport={"width": 1400, "height": 900}).new_page()
        page.set_default_timeout(60_000)  # a busy machine is not a defect
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
        page.on("requestfailed", lambda request: faults.append(f"{request.url[:200]}: {request.failure}"))

        def visit(file: Path) -> Any:
            page.goto(file.resolve().as_uri())
            return page

        yield visit
        browser.close()
    assert not faults


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 rendered scenes as WebDataset shards."""
    from apex.data.shards import write_world

    folder = tmp_path_factory.mktemp("tiny_shards") / "shards"
    write_world(folder, scenes=48, resolution=RESOLUTION, seed=0)
    return folder


@pytest.fixture(scope="session")
def tiny_cache(tiny_pipeline: Path, tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The latents of `tiny_shards` under the codec of `tiny_pipeline`."""
    from apex.data.latents import build

    folder = tmp_path_factory.mktemp("tiny_cache") / "cache"
    build(tiny_pipeline, tiny_shards, folder)
    return folder


@pytest.fixture(scope="session")
def tiny_stock(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """tiny_stock("sana" or "qwen_image"): a folder with a small stock pipeline of that family, random weights, as diffusers saves it."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        import torch

        from tests.stock import BUILDERS

        if family not in made:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                pipeline = BUILDERS[family]()
                for part in (pipeline.transformer, pipeline.vae, pipeline.text_encoder):
                    for parameter in part.parameters():  # far enough from zero to see every mistake
                        torch.nn.init.normal_(parameter, std=0.2)
            made[family] = tmp_path_factory.mktemp(family) / "pipeline"
            pipeline.save_pretrained(made[family], safe_serialization=True, max_shard_size="20KB")  # in parts, as large ones are published
        return made[family]

    return make
