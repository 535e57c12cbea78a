"""Cases of the configuration: a profile's file, `--set` of our commands and `--config` of Snakemake, as each is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from apex.config import ROOT, Config, load
from tests.bad_inputs.case import Case
from workflows.plan import Plan, configured

FILE, SECRET = r"profile\.yaml: ", "hunter2"
SAFE = rf"^(?!.*{SECRET}).*"  # the line does not hold the secret


def profile(text: str | bytes, *changes: str, name: bool = True) -> Callable[[Path], Callable[[], Config]]:
    """Reads a profile of this content, with `--set` of `changes`; `name`: its first line is `profile: mine`."""

    def make(folder: Path) -> Callable[[], Config]:
        content = text.encode() if isinstance(text, str) else text
        (folder / "profile.yaml").write_bytes((b"profile: mine\n" if name else b"") + content)
        return lambda: load(folder / "profile.yaml", changes)

    return make


def snakemake(text: str, **settings: Any) -> Callable[[Path], Callable[[], Config]]:
    """Reads a profile as the Snakefile does, with Snakemake's `--config` of `settings`, and looks whether all its files are there."""

    def make(folder: Path) -> Callable[[], Config]:
        (folder / "profile.yaml").write_text(f"profile: mine\n{text}")

        def call() -> Config:
            called = configured(ROOT, [folder / "profile.yaml"], settings)
            called.config.launched()
            called.check(Plan(called.config))
            return called.config

        return call

    return make


def method_file(place: str, key: str) -> Callable[[Path], Callable[[], Config]]:
    """A method's file at `place`, named by a profile in conf/ as `key`."""

    def make(folder: Path) -> Callable[[], Config]:
        for path in (folder / place, folder / "conf" / "profile.yaml"):
            path.parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_text("METHOD = None\n")
        (folder / "conf" / "profile.yaml").write_text(f"profile: mine\nmethod_files: [{key}]\nmethods: [my-method]\n")
        return lambda: load(folder / "conf" / "profile.yaml")

    return make


def has(path: str, expected: Any) -> Callable[[Path, Config], None]:
    """A check that the configuration has this value at the dotted `path`."""

    def check(folder: Path, config: Config) -> None:
        value: Any = config
        for part in path.split("."):
            value = value[int(part)] if part.isdigit() else value[part] if isinstance(value, dict) else getattr(value, part)
        assert value == expected, value

    return check


def found_file(folder: Path, config: Config) -> None:
    assert [Path(path).resolve() for path in config.method_paths] == [(folder / "mine" / "my_method.py").resolve()]


def a_folder(folder: Path) -> Callable[[], Config]:
    (folder / "profile.yaml").mkdir()
    return lambda: load(folder / "profile.yaml")


BOMB = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))
ROWS = "rows:\n  one: &base {method: apex, tuning: lora, lora: {rank: 4}}\n"

FILES = [
    Case("profile file", name, profile(text, name=False), FILE + says)
    for name, text, says in [
        ("empty", "", r"found nothing, expected keys and values"),
        ("a comment alone", "# later\n", r"found nothing, expected keys and values"),
        ("a list", "- a\n", r"found a list, expected keys and values"),
        ("one word", "world\n", r"found 'world', expected keys and values"),
        ("not UTF-8", b"profile: \xff\xfe\n", r"not UTF-8: found byte 0xff in line 1, expected UTF-8; save it as UTF-8"),
        ("UTF-16", "profile: mine\n".encode("utf-16"), r"not UTF-8: found byte 0xff in line 1"),
        ("a NUL character", "profile: mine\0\n", r"not valid YAML: .*unacceptable character"),
        ("a tab", "profile: mine\ndata:\n\tscenes: 1\n", r"line 3: not valid YAML"),
        ("a key twice", "profile: mine\nnfe: 1\nnfe: 2\n", r"line 3: not valid YAML: key 'nfe' is given twice"),
        ("a list as a key", "? [a]\n: b\n", r"line 1: not valid YAML: found a list or a mapping as a key"),
        ("aliases that multiply", BOMB, r"not valid YAML: its aliases stand for more than"),
        ("an alias of itself", "a: &a [*a]\n", r"not valid YAML: its aliases stand for themselves"),
        ("nested too deeply", "a: " + "[" * 3000 + "]" * 3000, r"not valid YAML: nested too deeply"),
        ("no such day", "profile: mine\ndescription: 2024-99-99\n", r"not valid YAML: month must be in 1..12"),
        ("5,000 digits", f"profile: mine\nseeds: [{'9' * 5000}]\n", r"not valid YAML: .*digits"),
    ]
]
FILES += [
    Case("profile's place", "a folder", a_folder, FILE + "cannot be read: Is a directory"),
    Case("profile's place", "nowhere", lambda folder: lambda: load(folder / "none.yaml"), r"none\.yaml: no such configuration file"),
    Case(
        "profile's place",
        "a name with a slash",
        lambda folder: lambda: configured(ROOT, [], {"profile": "../world"}),
        r"--config profile: found '\.\./world', expected the name of a profile in workflows/config",
    ),
    Case("profile's place", "two files", lambda folder: lambda: configured(ROOT, [folder / "a", folder / "b"], {}), r"found 2 files"),
    Case("profile's place", "a mark of the byte order", profile("\ufeffprofile: mine\n", name=False), None, has("profile", "mine")),
    Case("profile's place", "line ends of Windows", profile("nfe: [1]\r\nseeds: [3]\r\n"), None, has("seeds", [3])),
]

KEYS = [
    Case("keys", "half of a list", profile("methods: '[a'\n"), FILE + r"methods: found '\[a', expected words or numbers with commas"),
    Case("keys", "half of a list of files", profile("method_files: '{a'\n"), FILE + r"method_files: found '\{a', expected words"),
    Case("keys", "unknown", profile("batch: 3\n"), FILE + r"batch: unknown key 'batch'"),
    Case("keys", "unknown, nested", profile("train: {batchsize: 3}\n"), FILE + r".*did you mean 'batch_size'\?"),
    Case("keys", "a number", profile("3: x\n"), FILE + r"3: "),
    Case("keys", "a merge of a word", profile("data: {<<: word}\n"), FILE + r" ?line 2: not valid YAML: expected a mapping"),
    Case("keys", "a merge twice", profile(ROWS + "  two: {<<: *base, <<: *base}\n"), r"not valid YAML: key '<<' is given twice"),
    Case(
        "keys",
        "a key twice beside a merge",
        profile(ROWS + "  two: {<<: *base, lora: {rank: 1}, lora: {rank: 2}}\n"),
        "'lora' is given twice",
    ),
    Case("keys", "a merge", profile(ROWS + "  two: {<<: *base}\n"), None, has("rows.two.lora.rank", 4)),
    Case(
        "keys", "a merge with a key of its own", profile(ROWS + "  two: {<<: *base, lora: {rank: 8}}\n"), None, has("rows.two.lora.rank", 8)
    ),
    Case(
        "keys",
        "a merge of a merge",
        profile(ROWS + "  two: &two {<<: *base, tuned: false}\n  three: {<<: *two, lora: {rank: 2}}\n"),
        None,
        has("rows.three.tuned", False),
    ),
    Case(
        "keys",
        "merges of a list",
        profile(ROWS + "  two: &two {method: fm}\n  three: {<<: [*two, *base]}\n"),
        None,
        has("rows.three.method", "fm"),
    ),
]

NAMES = [
    Case("profile names", f"{name!r}", profile(f"profile: {name!r}\n", name=False), FILE + r"profile: found " + says)
    for name, says in [
        *((kept, f"'{kept}', expected another name: results/") for kept in ("reference", "pretrained", "theory", "speed", "assets")),
        *((bad, r".*, expected a name of a-z, 0-9") for bad in ("a/b", "..", ".hidden", "a.", " a", "a ", "", "UPPER", "$(touch x)")),
    ]
]
NAMES.append(Case("profile names", "a version in it", profile("profile: mine-2.1_b\n", name=False), None, has("profile", "mine-2.1_b")))

NUMBERS = [
    Case("numbers", line, profile(line + "\n"), FILE + says)
    for line, says in [
        ("guidance: .nan", r"guidance: found nan, expected a finite number"),
        ("guidance: -.inf", r"guidance: found -inf, expected a finite number"),
        ("guidance: '2.5'", r"guidance: found '2.5', expected a valid number"),
        ("budget: {forward_equivalents: -1}", r"budget\.forward_equivalents: found -1, expected greater than 0"),
        ("budget: {forward_equivalents: 1e400}", r"budget\.forward_equivalents: found inf, expected a finite number"),
        ("budget: {forward_equivalents: 1e30}", r"budget\.forward_equivalents: found 1e\+30, expected less than"),
        ("train: {batch_size: 0}", r"train\.batch_size: found 0, expected greater than or equal to 1"),
        ("train: {batch_size: 100000000000000000000000000}", r"train\.batch_size: found 1000+, expected less than"),
        ("train: {learning_rate: .nan}", r"train\.learning_rate: found nan, expected a finite number"),
        ("train: {max_grad_norm: .inf}", r"train\.max_grad_norm: found inf, expected a finite number"),
        ("seeds: [-1]", r"seeds\.0: found -1, expected greater than or equal to 0"),
        ("seeds: [99999999999999999999]", r"seeds\.0: found 9+, expected less than"),
        ("nfe: [0]", r"nfe\.0: found 0, expected greater"),
        ("nfe: [1000000000]", r"nfe\.0: found 1000000000, expected less than"),
        ("data: {resolution: -32}", r"data\.resolution: found -32, expected greater than or equal to 16"),
    ]
]
NUMBERS += [
    Case("more numbers", line, profile(line + "\n"), FILE + says)
    for line, says in [
        ("data: {scenes: 100000000000000000000}", r"data\.scenes: found 10+, expected less than"),
        (
            "rows: {big: {method: apex, tuning: lora, lora: {rank: 100000000}}}",
            r"rows\.big\.lora\.rank: found 100000000, expected less than",
        ),
        ("sampling: {sigmas: {2: [1.0, .nan]}}", r"sampling\.sigmas\.2\.1: found nan, expected"),
        ("sampling: {sigmas: {0: []}}", r"sampling: sigmas of NFE 0: found \[\], expected"),
        ("pretraining: {layers: 1000000000}", r"pretraining\.layers: found 1000000000, expected less than"),
        ("train: {ema: 1.5}", r"train\.ema: found 1.5, expected less than or equal to 1"),
        ("seeds: [true]", r"seeds\.0: found True, expected a valid integer"),
    ]
]

WISE = "evaluation: {{wise: {{{}}}}}\n"
SECRETS = [
    Case("secrets", name, make, SAFE + says)
    for name, make, says in [
        (
            "a password in the endpoint",
            profile(WISE.format("endpoint: 'https://me:hunter2@host/v1'")),
            FILE + r"evaluation\.wise\.endpoint: .*key_variable",
        ),
        (
            "a user in the endpoint",
            profile(WISE.format("endpoint: 'https://hunter2@host/v1'")),
            FILE + r"evaluation\.wise\.endpoint: .*key_variable",
        ),
        (
            "a key in the endpoint's query",
            profile(WISE.format("endpoint: 'https://host/v1?api-key=hunter2'")),
            r"evaluation\.wise\.endpoint: .*key_variable",
        ),
        (
            "a query of another name",
            profile(WISE.format("endpoint: 'https://host/v1?x=hunter2'")),
            r"evaluation\.wise\.endpoint: .*key_variable",
        ),
        ("no URL", profile(WISE.format("endpoint: 'hunter2'")), r"evaluation\.wise\.endpoint: .*expected a URL such as"),
        (
            "a key as key_variable",
            profile(WISE.format("key_variable: sk-hunter2hunter2hunter2aaaa")),
            r"evaluation\.wise\.key_variable: .*environment",
        ),
        (
            "a hexadecimal key as key_variable",
            profile(WISE.format("key_variable: abcdefhunter2abcdef0123")),
            r"evaluation\.wise\.key_variable: .*environment",
        ),
        ("the same by --set", profile("", "evaluation.wise.key_variable=hunter2"), r"--set evaluation\.wise\.key_variable: .*environment"),
        (
            "the same by --config",
            snakemake("", evaluation={"wise": {"key_variable": "hunter2"}}),
            r"--config evaluation\.wise\.key_variable: .*environment",
        ),
        (
            "a password in a source",
            profile("external: [{row: a, images: b, nfe: 1, source: 'https://me:hunter2@host'}]\n"),
            r"external\.0\.source: ",
        ),
        ("a token of the hub", profile("description: 'token hf_hunter2hunter2hunter2hunter2'\n"), r"description: "),
        (
            "a token in a call",
            profile("checkpoints: [{row: a, hub: b/c, nfe: [1], call: {token: hunter2}}]\n"),
            r"checkpoints\.0\.call\.token: ",
        ),
        ("a key as the card", snakemake("", card="sk-hunter2hunter2hunter2aaaa"), r"--config card: "),
        ("--set without a key", profile("", "sk-hunter2hunter2hunter2aaaa"), r"--set: "),
        ("a key under a key of its own", profile("api_key: hunter2\n"), FILE + r"api_key: "),
    ]
]
NO_SECRETS = [
    Case(
        "no secrets",
        "a judge of this machine",
        profile(WISE.format("endpoint: 'http://127.0.0.1:8000/v1', key_variable: ''")),
        None,
        has("evaluation.wise.endpoint", "http://127.0.0.1:8000/v1"),
    ),
    Case(
        "no secrets",
        "a variable",
        profile(WISE.format("key_variable: MY_LAB_KEY_2")),
        None,
        has("evaluation.wise.key_variable", "MY_LAB_KEY_2"),
    ),
    Case(
        "no secrets",
        "a name with sk-",
        profile("data: {source: data/sk-learn-dataset-of-2024}\n"),
        None,
        has("data.source", "data/sk-learn-dataset-of-2024"),
    ),
    Case(
        "no secrets", "words of the field", profile("description: 'tokens, keys and secrets: git@host:a/b, ssh://git@host/a?b=c'\n"), None
    ),
]

ONE_EXTERNAL = "external: [{row: a, images: b, nfe: 1}]\n"
FAULTS = [
    Case("whose fault", "the file's, beside --config", snakemake("guidance: -1\n", nfe=1), "^[^ ]*" + FILE + r"guidance: found -1"),
    Case(
        "whose fault",
        "the file's, of a list that --config does not change",
        snakemake("methods: [none]\n", seeds=1),
        "^[^ ]*" + FILE + "methods: unknown",
    ),
    Case("whose fault", "--config's", snakemake("guidance: 1\n", guidance=-1), r"^--config guidance: found -1"),
    Case("whose fault", "--config's, of an unknown method", snakemake("", methods="none"), r"^--config methods: unknown method 'none'"),
    Case(
        "whose fault",
        "--config's, nested",
        snakemake("train: {batch_size: 3}\n", train={"batch_size": "0"}),
        r"^--config train\.batch_size: found 0",
    ),
    Case(
        "whose fault",
        "--config's, of another key",
        snakemake("", hub="owner/name"),
        FILE.rstrip(": ") + r" with --config hub: pipeline: found",
    ),
    Case(
        "whose fault",
        "a folder that --config names",
        snakemake("", data={"source": "no/where"}),
        r"^--config data\.source: found nothing at no/where",
    ),
    Case(
        "whose fault",
        "a folder that the file names",
        snakemake("data: {source: no/where}\n", nfe=1),
        "^[^ ]*" + FILE + r"data\.source: found nothing",
    ),
    Case("whose fault", "a tuned file that --config names", snakemake("", tuned="no.yaml"), r"^--config tuned: found no file"),
    Case(
        "whose fault", "a tuned file that the file names", snakemake("tuned: no.yaml\n", nfe=1), "^[^ ]*" + FILE + r"tuned: found no file"
    ),
    Case("whose fault", "a launch file that --config names", snakemake("", launch="no.yaml"), r"^--config launch: found no file"),
    Case(
        "whose fault", "prompts that --config names", snakemake("", prompts={"test": "no.jsonl"}), r"^--config prompts\.test: found no file"
    ),
    Case("whose fault", "an unknown card", snakemake("", card="h1000"), r"^--config card: unknown card 'h1000'"),
    Case("whose fault", "an unknown system", snakemake("", systems="none"), r"^--config systems: .*'none'"),
    Case("whose fault", "no YAML in --config", snakemake("", set="train={a"), r"^--config train: line 1: not valid YAML"),
]

SETS = [
    Case("one key", "by set", snakemake("", set="budget.forward_equivalents=2e4"), None, has("budget.forward_equivalents", 2e4)),
    Case("one key", "two by set", snakemake("", set="train.batch_size=8 data.resolution=64"), None, has("data.resolution", 64)),
    Case(
        "one key", "a list", snakemake("", set=["train.batch_size=8", "description=two words=2"]), None, has("description", "two words=2")
    ),
    Case("one key", "a value with spaces", snakemake("", set="rows.x={method: fm, tuned: false} nfe=2"), None, has("rows.x.tuned", False)),
    Case("one key", "keys and values", snakemake("", set={"train.batch_size": "8"}), None, has("train.batch_size", 8)),
    Case("one key", "of a list's entry", profile(ONE_EXTERNAL, "external.0.nfe=3"), None, has("external.0.nfe", 3)),
    Case("one key", "braces and quotes", profile("", "description='{a} \"b\" $(c)'"), None, has("description", '{a} "b" $(c)')),
    Case("one key", "the last one counts", profile("", "nfe=1", "nfe=2"), None, has("nfe", [2])),
    Case("one key", "without =", snakemake("", set="budget"), r"^--config set: found 'budget', expected KEY=VALUE"),
    Case("one key", "an empty part", profile("", "train..ema=1"), r"^--set train\.\.ema: found an empty part"),
    Case("one key", "a power of two", profile("", "train.\u00b2=1"), r"^--set train\.\u00b2: unknown key"),
    Case(
        "one key",
        "beyond a list's end",
        profile(ONE_EXTERNAL, "external.7.nfe=1"),
        r"^--set external\.7\.nfe: found 7, expected the number of one of 1",
    ),
    Case(
        "one key",
        "below a number",
        profile("guidance: 2.5\n", "guidance.x=1"),
        r"--set guidance\.x: guidance: found \{'x': 1\}, expected a valid number",
    ),
]

TEXTS = [
    Case("texts", "braces, quotes and spaces", profile("data: {source: 'a {b} \"c\" $(d)'}\n"), None, has("data.source", 'a {b} "c" $(d)')),
    Case("texts", "a NUL in a path", profile('data: {source: "a\\0b"}\n'), FILE + r"data\.source: found a control character"),
    Case("texts", "a line end in a path", profile('pipeline: "a\\nb"\n'), FILE + r"pipeline: found a line end"),
    Case("texts", "half a character", profile('description: "\\ud800"\n'), FILE + r".*found half of a character"),
    Case("texts", "an escape of the terminal", profile('tuned: "\\e[2Ja"\n'), FILE + r"tuned: found a control character"),
    Case("texts", "two lines of description", profile("description: |\n  one\n  two\n"), None, has("description", "one\ntwo\n")),
    Case("method files", "relative to the profile", method_file("mine/my_method.py", "../mine/my_method.py"), None, found_file),
    Case(
        "method files",
        "missing",
        method_file("mine/my_method.py", "mine/my_method.py"),
        FILE + "method_files: found no Python file at mine/my_method",
    ),
    Case(
        "method files",
        "not Python",
        method_file("conf/my_method.txt", "my_method.txt"),
        FILE + "method_files: found no Python file at .*my_method.txt",
    ),
    Case("method files", "a number", profile("method_files: 3\n"), FILE + r"method_files\.0: found 3, expected a valid string"),
]

CASES = [*FILES, *KEYS, *NAMES, *NUMBERS, *SECRETS, *NO_SECRETS, *FAULTS, *SETS, *TEXTS]
