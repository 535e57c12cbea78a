"""How a training starts: in one process, or in several by accelerate, with a configuration file of accelerate's own. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from apex.errors import UserError
from apex.strict import parse_yaml, read_text

KINDS = {"MULTI_GPU": False, "FSDP": True}  # accelerate's distributed_type -> whether weights are split (apex/sharding.py)


@dataclass(frozen=True)
class Launch:
    """file: accelerate's configuration; '': one process. processes: how many. split: whether their weights are split."""

    file: str = ""
    processes: int = 1
    split: bool = False

    @property
    def command(self) -> list[str]:
        """The words before `apex.train`."""
        return ["accelerate", "launch", "--config_file", self.file, "-m"] if self.file else ["python", "-m"]


def read(path: Path, key: str) -> Launch:
    """The configuration at `path`, which `key` names.

    Raises:
        UserError: one line that names the file and what of it cannot be launched here.
    """
    try:
        values = parse_yaml(read_text(path), str(path))
    except OSError:
        raise UserError(f"{key}: found no file {path}; expected one such as workflows/accelerate/fsdp2.yaml") from None
    values = values if isinstance(values, dict) else {}
    kind, count, machines = (values.get(name) for name in ("distributed_type", "num_processes", "num_machines"))
    if kind not in KINDS:
        raise UserError(f"{path}: distributed_type: found {kind}, expected one of {', '.join(KINDS)}")
    if not isinstance(count, int) or count < 2:
        raise UserError(f"{path}: num_processes: found {count}, expected a number of GPUs above 1")
    if machines not in (None, 1):
        raise UserError(f"{path}: num_machines: found {machines}, expected 1: a job runs on one machine; start larger ones by hand")
    version = (values.get("fsdp_config") or {}).get("fsdp_version")
    if KINDS[kind] and version != 2:
        raise UserError(f"{path}: fsdp_config.fsdp_version: found {version}, expected 2")
    return Launch(str(path), count, KINDS[kind])
