"""Who answers DPG-Bench's questions: the protocol's mPLUG, or a question-answering or chat model in transformers' format."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image

from apex.errors import UserError, readable
from apex.provenance import digest, file_sha256
from apex.weights import check_finite, pretrained
from evaluators.dpg import MPLUG

YES_OR_NO = " Answer with yes or no."
ANSWER_TOKENS = 8
FILES = ["*.json", "*.txt", "*.model", "*.jinja", "*.safetensors"]  # of a model on the hub; no pickles, no code


class Judge(Protocol):
    """Answers questions about images. `identity` is all that its answers depend on; `exact`: an answer must be the bare word."""

    identity: dict[str, Any]
    exact: bool

    def answer(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[str]:
        """One answer for each image and its question. It does not depend on what else is asked in the call beyond rounding."""
        ...


class Mplug:
    """The protocol's own judge, mPLUG-large for VQA: modelscope's model without its pipeline, which imports every other model's packages.

    What the pipeline does with an image and a question is done here: bicubic to the model's square, CLIP's normalisation, the question in
    lower case and cut to 25 tokens, the best answer of the beam search (modelscope 1.40.2, `MPlugPreprocessor` and `MPlugForAllTasks`).
    """

    exact = True

    def __init__(self, model: str | None, device: str, precision: str, batch: int) -> None:
        if importlib.util.find_spec("modelscope") is None:
            raise UserError("--judge mplug: modelscope is not installed; it needs an environment of its own, see docs/evaluators/dpg.md")
        if int(metadata.version("transformers").split(".")[0]) >= 5:
            raise UserError(
                f"--judge mplug: modelscope's mPLUG does not build under transformers {metadata.version('transformers')}; "
                "it needs an environment of its own with transformers 4, see docs/evaluators/dpg.md"
            )
        if precision != "float32":
            raise UserError(f"--precision {precision}: mPLUG is run in float32")
        from modelscope.hub.snapshot_download import snapshot_download
        from modelscope.models.multi_modal.mplug import MPlug
        from torchvision import transforms

        name = model or MPLUG
        folder = Path(name) if Path(name).is_dir() else Path(snapshot_download(name))
        with readable(folder, "give --model the folder or modelscope's name of an mPLUG for visual question answering"):
            self._model = MPlug.from_pretrained(str(folder), task="visual-question-answering", load_checkpoint=False)
            state = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
            state = state.get("model", state)
            state = state.get("module", state)
            names = self._model.load_state_dict({key.replace("model.", ""): value for key, value in state.items()}, strict=False)
            if names.missing_keys:  # tensors without a place are left out, as modelscope's own pipeline does; the record counts them
                raise ValueError(f"{len(names.missing_keys)} weights are missing, such as {names.missing_keys[0]}")
            check_finite(self._model.state_dict(), {}, folder / "pytorch_model.bin", "fetch it again")
        self._model.eval().to(device)
        self._device, self._batch = device, batch
        side = self._model.config.image_res
        self._transform = transforms.Compose(
            [
                transforms.Resize((side, side), interpolation=transforms.InterpolationMode.BICUBIC),
                transforms.ToTensor(),
                transforms.Normalize((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
            ]
        )
        self.identity = {
            "judge": "mplug",
            "model": folder.name if Path(name).is_dir() else name,
            "weights_sha256": file_sha256(folder / "pytorch_model.bin"),
            "unused_tensors": len(names.unexpected_keys),
            "modelscope": metadata.version("modelscope"),
            "transformers": metadata.version("transformers"),
        }

    @torch.no_grad()
    def answer(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[str]:
        tokenizer, answers = self._model.tokenizer, []
        for start in range(0, len(images), self._batch):
            pixels = torch.stack([self._transform(image) for image in images[start : start + self._batch]])
            asked = [question.lower() for question in questions[start : start + self._batch]]
            tokens = tokenizer(asked, padding="max_length", truncation=True, max_length=25, return_tensors="pt")
            best, _ = self._model(pixels.to(self._device), tokens.to(self._device), train=False)
            answers += [tokenizer.decode(ids[0], skip_special_tokens=True) for ids in best]
        return answers


class _Transformers:
    """What the two kinds of transformers models share: a local folder or a hub name, safetensors alone, batches without padding.

    Questions of one length are asked together, so nothing is padded: BLIP ignores the mask of its question when it answers, and its
    answer to a padded question is another one.
    """

    exact = False

    def __init__(self, kind: str, model: str | None, device: str, precision: str, batch: int) -> None:
        if model is None:
            raise UserError(f"--judge {kind}: give --model, the folder or the hub's name of its model")
        self._folder = _folder(model)
        self._device, self._batch = device, batch
        self._dtype = getattr(torch, precision)
        weights = sorted(self._folder.glob("*.safetensors"))
        if not weights:
            raise UserError(f"{self._folder}: no *.safetensors; convert the weights, pickles are not opened")
        digests = [file_sha256(path) for path in weights]
        self.identity = {
            "judge": kind,
            "model": self._folder.name if Path(model).is_dir() else model,
            "weights_sha256": digests[0] if len(digests) == 1 else digest(digests),
            "configuration": digest({p.name: file_sha256(p) for pattern in FILES[:-1] for p in self._folder.glob(pattern)}),
            "precision": precision,
            "transformers": metadata.version("transformers"),
        }

    def _load(self, automatic: type) -> Any:
        model = pretrained(automatic, self._folder, "fetch it again", self._dtype)
        self.identity["class"] = type(model).__name__
        return model.eval().requires_grad_(False).to(self._device)

    def _processor(self) -> Any:
        from transformers import AutoProcessor

        with readable(self._folder, "it needs the processor's and the tokenizer's files beside the weights"):
            return AutoProcessor.from_pretrained(self._folder)

    def _by_length(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Indices in batches of one length."""
        for length in sorted(set(lengths)):
            mine = [i for i, n in enumerate(lengths) if n == length]
            for start in range(0, len(mine), self._batch):
                yield mine[start : start + self._batch]

    def _in_batches(self, lengths: Sequence[int], ask: Callable[[list[int]], list[str]]) -> list[str]:
        answers = [""] * len(lengths)
        for indices in self._by_length(lengths):
            for index, text in zip(indices, ask(indices), strict=True):
                answers[index] = text.strip()
        return answers


class TransformersVqa(_Transformers):
    """A ViLT, whose answer is the likeliest of its labels, or a BLIP, which writes its answer greedily."""

    def __init__(self, model: str | None, device: str, precision: str, batch: int) -> None:
        super().__init__("transformers-vqa", model, device, precision, batch)
        from transformers import AutoConfig, AutoModelForVisualQuestionAnswering

        with readable(self._folder, "expected a model in transformers' format"):
            kind = AutoConfig.from_pretrained(self._folder).model_type
        if kind not in ("vilt", "blip"):
            raise UserError(f"{self._folder}: a model of type {kind}; transformers-vqa takes vilt and blip, transformers-vlm chat models")
        self._model, self._process = self._load(AutoModelForVisualQuestionAnswering), self._processor()
        self._tokenizer = self._process.tokenizer
        limits = [self._tokenizer.model_max_length, *(_positions(self._model.config))]
        self._limit = min(limits)
        self.identity["question_tokens"] = self._limit

    @torch.no_grad()
    def answer(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[str]:
        cut = {"truncation": True, "max_length": self._limit}

        def ask(indices: list[int]) -> list[str]:
            inputs = self._process(
                images=[images[i] for i in indices], text=[questions[i] for i in indices], return_tensors="pt", padding=False, **cut
            ).to(self._device, self._dtype)
            if self._model.config.model_type == "vilt":
                names = self._model.config.id2label
                return [str(names[k]) for k in self._model(**inputs).logits.argmax(-1).tolist()]
            written = self._model.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=ANSWER_TOKENS)
            return self._tokenizer.batch_decode(written, skip_special_tokens=True)

        return self._in_batches([len(self._tokenizer(q, **cut).input_ids) for q in questions], ask)


class TransformersVlm(_Transformers):
    """A chat model that sees images (Qwen2.5-VL, LLaVA, SmolVLM, ...), asked for yes or no under its own chat template, greedily."""

    def __init__(self, model: str | None, device: str, precision: str, batch: int) -> None:
        super().__init__("transformers-vlm", model, device, precision, batch)
        from transformers import AutoModelForImageTextToText

        self._model, self._process = self._load(AutoModelForImageTextToText), self._processor()
        if not getattr(self._process, "chat_template", None):
            raise UserError(f"{self._folder}: no chat template; transformers-vlm takes chat models")
        self.identity |= {"asked": "QUESTION" + YES_OR_NO, "answer_tokens": ANSWER_TOKENS}

    @torch.no_grad()
    def answer(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[str]:
        chats = [
            [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question + YES_OR_NO}]}]
            for image, question in zip(images, questions, strict=True)
        ]

        def ask(indices: list[int]) -> list[str]:
            inputs = self._process.apply_chat_template(
                [chats[i] for i in indices], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
            ).to(self._device, self._dtype)
            written = self._model.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=ANSWER_TOKENS)
            return self._process.tokenizer.batch_decode(written[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

        texts = [self._process.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) for chat in chats]
        return self._in_batches([len(self._process.tokenizer(text).input_ids) for text in texts], ask)


JUDGES: dict[str, Callable[[str | None, str, str, int], Judge]] = {
    "mplug": Mplug,
    "transformers-vqa": TransformersVqa,
    "transformers-vlm": TransformersVlm,
}


def _positions(config: Any) -> list[int]:
    """How many tokens of a question the model has places for."""
    parts = [config, getattr(config, "text_config", None)]
    return [part.max_position_embeddings for part in parts if hasattr(part, "max_position_embeddings")]


def _folder(model: str) -> Path:
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=FILES))
    except (OSError, ValueError) as error:
        raise UserError(f"--model {model}: no such folder, and not to be had from the hub ({str(error).splitlines()[0]})") from error
