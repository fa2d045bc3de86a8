"""The commands of `dpo-lab` and their options: every option is a field, and its help is the line under the field."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from dpo_lab.config import AutoPrecision, DPOConfig, LoRAConfig, LossName, ScoreTurns, SFTConfig, TrackerName
from dpo_lab.workbench.rounds.config import RoundsConfig
from dpo_lab.workbench.runs.settings import HeldOutSettings, PassSettings, ReadingSettings, RowSettings, SplitSettings
from dpo_lab.workbench.sweeps.settings import SweepSettings

LossWords = Annotated[str, tyro.constructors.PrimitiveConstructorSpec(
    nargs="*", metavar="NAME[:WEIGHT]...", instance_from_str="+".join, is_instance=lambda value: isinstance(value, str),
    str_from_instance=lambda value: value.split("+"),
)]  # fmt: skip
"""The words of a loss, joined as `DPOConfig.loss` has them."""


@dataclass(frozen=True, kw_only=True)
class InputOptions(ReadingSettings):
    """Where the model and the data come from."""

    cache: Path | None = None
    """File or folder of the reference's log-probs, with token ids beside it; None takes ~/.cache/dpo-lab or
    DPO_LAB_CACHE."""


@dataclass(frozen=True, kw_only=True)
class PrecisionOption:
    """Comes first among the bases of options: theirs takes `auto`, a configuration's does not."""

    precision: AutoPrecision = "auto"
    """Arithmetic of the forward pass. `auto` is float32 for a small model, and for a larger one bfloat16 where a short
    trial shows that it multiplies faster here. Weights, log-sum-exp and sums stay in float32."""
    precisions = AutoPrecision.__args__


@dataclass(frozen=True, kw_only=True)
class ModelOptions(PrecisionOption):
    """What depends on the model that is trained; comes first among the bases too."""

    learning_rate: float | None = None
    """Peak learning rate. None takes 2e-4 (sft: 1e-3) for a small model; for a larger one 2e-6 (sft: 2e-5), and ten
    times that for an adapter."""
    save_dtype: Literal["base", "float32", "bfloat16", "float16"] = "base"
    """Weights of the saved model: `base` as in the files of the model that training began from. They are float32 while
    it trains, so bfloat16 and float16 round them."""


@dataclass(frozen=True, kw_only=True)
class DataOptions(SplitSettings, InputOptions):
    """What a run learns from, and what it is evaluated on."""

    tokens: Path | None = None
    """Stream the rows, and map their token ids from this folder: for more data than memory holds."""
    held_out: str | None = None
    """Data to evaluate on; None takes the embedded test split, or splits off --validation."""
    held_out_split: str | None = None
    """Which split of --held-out; None takes test where it is the source of --pairs too, else train."""

    def check_data(self) -> None:
        """A stream is read once, from its beginning to its end."""
        self.check_split()
        if self.tokens is not None and self.limit is not None:
            raise ValueError(f"--tokens streams all rows, and --limit {self.limit} draws among them; leave out one of "
                             "the two")  # fmt: skip
        if self.tokens is not None and (self.job is not None or self.flip):
            raise ValueError("--tokens streams all rows as they are; leave out --job and --flip, or --tokens")
        is_given = self.validation not in (0, DataOptions.validation)
        if self.tokens is not None and self.held_out is None and self.pairs != "embedded" and is_given:
            raise ValueError(f"--tokens streams all rows, and --validation {self.validation} cannot hold some of them "
                             "out; give --held-out DATA, or leave --validation out")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RunOptions(HeldOutSettings, DataOptions):
    """What a run leaves behind."""

    run: Path | None = None
    """Folder of the run; None makes runs/COMMAND-DATE-TIME."""
    resume: bool = False
    """Go on with the run in --run from its last checkpoint."""
    track: TrackerName | None = None
    """Log the metrics to this experiment tracker as well; tensorboard writes into the run's folder."""
    push_to_hub: str | None = None
    """Upload the trained model to this repository of the Hub (owner/name), made private; needs `hf auth login`."""

    def check(self) -> None:
        """ValueError for what would fail only after training."""
        self.check_data()
        self.check_held_out()


@dataclass(frozen=True, kw_only=True)
class TrainOptions(ModelOptions, DPOConfig, LoRAConfig, RunOptions):  # pyright: ignore[reportIncompatibleVariableOverride]
    """Align a model with preference pairs (DPO and its family)."""

    loss: LossWords = "dpo"
    """Which loss (`dpo-lab losses` prints them); or a sum of losses of pairs and of sft, each with its weight, as
    dpo:1 sft:0.1. kto, bco and apo_zero_unpaired learn from rows of prompt, completion and label."""
    kl_prompts: int = 64
    """Held-out prompts on which the KL from the reference is estimated at the end; 0 leaves it out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check()
        self.check_lora(self.dropout)
        check_kl_prompts(self.kl_prompts)


@dataclass(frozen=True, kw_only=True)
class SFTOptions(ModelOptions, SFTConfig, LoRAConfig, RunOptions):  # pyright: ignore[reportIncompatibleVariableOverride]
    """Fine-tune a model on good answers (prompt/completion or messages rows, or the chosen side of pairs)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check()
        self.check_lora(self.dropout)


@dataclass(frozen=True, kw_only=True)
class RoundsOptions(ModelOptions, RoundsConfig, LoRAConfig, ReadingSettings):  # pyright: ignore[reportIncompatibleVariableOverride]
    """Align a model in rounds: sample answers to the prompts of --pairs, judge them, learn from the pairs, go on."""

    loss: LossWords = "dpo"
    """Which loss of pairs (`dpo-lab losses` prints them); or a sum of losses and of sft, as dpo:1 sft:0.1."""
    judge: str = "true"
    """Who says which answer is better: `true` is the true reward of the world that the prompts come from; `implicit` is
    the policy's own reward against --reference; MODULE:FUNCTION takes (prompts, answers) and returns a number for each
    answer, or (prompt, first answer, second answer) and returns 1, 0 or 0.5; http(s)://HOST/v1 is an endpoint with the
    OpenAI chat protocol, its key in the environment variable DPO_LAB_JUDGE_KEY."""
    judge_model: str | None = None
    """The model that the endpoint of --judge runs."""
    length_price: float = 0.0
    """What a token costs under --judge implicit, so that long answers do not win by their length."""
    reference: str | None = None
    """The frozen model; None takes the policy as it is when the run begins."""
    tasks: int = 0
    """Take this many tasks of the world of instructions as prompts, in place of --pairs; for models such as smollm2."""
    held_prompts: int = 64
    """Prompts of the test split with which the policy is measured; of other data as many rows, which teach nothing
    then. 0 measures none."""
    run: Path | None = None
    """Folder of the run; None makes runs/rounds-DATE-TIME."""
    resume: bool = False
    """Go on with the run in --run from its last checkpoint, where a round began."""
    epochs: Annotated[float, tyro.conf.Suppress] = 1.0
    """No option here: rounds and steps say how long a run is."""
    max_steps: Annotated[int | None, tyro.conf.Suppress] = None
    """As `epochs`."""
    sync_reference: Annotated[int | None, tyro.conf.Suppress] = None
    """No option here: see `reference_follows`."""
    sync_mixup: Annotated[float | None, tyro.conf.Suppress] = None
    """As `sync_reference`."""
    score_turns: Annotated[ScoreTurns, tyro.conf.Suppress] = "assistant"
    """No option here: a sampled answer is one turn."""
    pairing: Annotated[Literal["best_worst", "best_each", "all"], tyro.conf.Suppress] = "best_worst"
    """No option here: of --pairs only the prompts are taken."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_lora(self.dropout)
        for name in ("tasks", "held_prompts"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"--{name.replace('_', '-')} must not be negative, got {getattr(self, name)}; 64 is usual"
                )
        is_endpoint = self.judge.startswith(("http://", "https://"))
        if is_endpoint != (self.judge_model is not None):
            raise ValueError("--judge-model names the model of an endpoint; give it with --judge http(s)://HOST/v1, "
                             "and only there")  # fmt: skip
        if self.judge == "implicit" and self.reference is None:
            raise ValueError("--judge implicit needs --reference: measured against itself, every reward of the policy "
                             "is 0; name the model that it was before it learnt from preferences")  # fmt: skip
        if self.length_price and self.judge != "implicit":
            raise ValueError(f"--length-price {self.length_price} is for --judge implicit; leave it out")


@dataclass(frozen=True, kw_only=True)
class ScoreOptions(PrecisionOption, PassSettings, InputOptions):  # pyright: ignore[reportIncompatibleVariableOverride]
    """How a model is run over rows."""

    tokens_per_pass: int = 16384
    """Most tokens that go through the model at a time."""
    seed: int = 0
    """Seed of --limit, and of what is held out."""
    loss: LossWords = "dpo"
    """The loss that is trained, as `dpo-lab train` takes it. kto, bco and apo_zero_unpaired take rows of prompt,
    completion and label, and take pairs apart."""


@dataclass(frozen=True, kw_only=True)
class CacheOptions(ScoreOptions, DataOptions):
    """Score what a run with these options learns from and holds out under its reference, and save the log-probs, so
    that training starts at once."""

    def __post_init__(self) -> None:
        self.check_data()


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(ScoreOptions):
    """Accuracy, margins, rewards and KL of a model on pairs or labelled answers, against its reference; or suites, or
    another model."""

    reference: str | None = None
    """The frozen model that rewards are measured against; None takes `embedded` for pairs, and none for --suite."""
    suite: str | None = None
    """Measure these instead of pairs, with commas between: instructions, perplexity, repetition. --limit is the number
    of tasks then (200), and perplexity is also that of the chosen answers of --pairs, if you name some."""
    against: str | None = None
    """Another model: how often are the answers better than its, under --judge?"""
    judge: str = "instructions"
    """`instructions` is that world's judge, on its tasks. MODULE:FUNCTION takes (prompt, first answer, second answer)
    and returns 1 where the first is better, 0 where the second is, 0.5 for a tie; it judges answers to the prompts of
    --pairs, if you name some."""
    temperature: float = 1.0
    """Of the answers that --suite and --against sample; 0 is greedy, and 1 alone gives a KL."""
    text: Path | None = None
    """Plain text for --suite perplexity; None takes the language reference that comes with Python."""
    out: Path | None = None
    """Write all that --suite and --against found to this .json file, every answer included."""
    beta: float | None = None
    """Scale of the implicit rewards; None takes the loss's own."""
    kl_prompts: int = 64
    """Prompts on which the KL from the reference is estimated; 0 leaves it out."""
    max_new_tokens: int = 128
    """Longest sampled answer, in tokens."""
    table: Path | None = None
    """Write one line per pair, or per labelled answer, to this .csv or .jsonl file."""

    def __post_init__(self) -> None:
        check_kl_prompts(self.kl_prompts)
        has_suites = self.suite is not None or self.against is not None
        if has_suites and self.table is not None:
            raise ValueError(
                f"--table {self.table} is of pairs; name a .json file with --out for --suite and --against"
            )
        for name in ("out", "text"):
            if not has_suites and getattr(self, name) is not None:
                raise ValueError(f"--{name} {getattr(self, name)} is for --suite and --against; give one of them too")


@dataclass(frozen=True, kw_only=True)
class SampleOptions(RowSettings):
    """Let a model answer prompts: from the command line, from a file of rows, or from standard input."""

    prompts: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """The prompts; none takes --pairs, or reads one prompt per line from standard input."""
    model: str = "embedded"
    """`embedded`, `smollm2` (a real model; without a network once `make real` has run), a folder that save_pretrained
    wrote (RUN/model), a .gguf file, or a Hub id."""
    pairs: str | None = None
    """Take the prompts of these rows: `embedded`, a file, a folder, or a Hub id."""
    limit: int | None = 8
    """At most this many prompts of --pairs."""
    system: str | None = None
    """A system turn put before each prompt."""
    raw: bool = False
    """Continue the text as it is, without a chat template."""
    num_samples: int = 1
    """Answers per prompt."""
    temperature: float = 0.7
    """0 is greedy, 1 is the model's own distribution."""
    top_p: float = 1.0
    """Keep only the likeliest tokens that together have this probability."""
    max_new_tokens: int = 128
    """Longest answer, in tokens."""
    seed: int = 0
    """Seed of the sampling."""
    device: str = "auto"
    """`auto` takes the GPU where there is one."""
    trust_remote_code: bool = False
    """Run Python code that comes with a Hub model. Read it first."""


@dataclass(frozen=True, kw_only=True)
class InspectOptions(RowSettings):
    """Show how data are read: the layout, what is reported, and some rows as tokens, with what is scored and cut."""

    data: Annotated[str, tyro.conf.Positional]
    """`embedded`, a file, a folder, or a Hub id."""
    model: str = "embedded"
    """Whose tokenizer and chat template; no weights are read."""
    rows: int = 3
    """Rows shown as tokens."""
    max_length: int = 1024
    """Most tokens of prompt plus one completion, as in training."""
    score_turns: ScoreTurns = "assistant"
    """Of an answer of several turns: score those of the assistant, also what users and tools say (`all`), or `last`."""
    sft: bool = False
    """As `dpo-lab sft` reads it: good answers, in place of pairs."""
    limit: int | None = None
    """Use at most this many rows, drawn with the seed 0."""
    on_bad_row: Literal["raise", "skip"] = "skip"
    """Stop at a row that cannot be used, or leave it out, count it and list it."""
    trust_remote_code: bool = False
    """Run Python code that comes with a Hub model. Read it first."""


@dataclass(frozen=True, kw_only=True)
class ConvertOptions(RowSettings):
    """Write pairs in the layout of another tool, as JSON lines or a JSON list."""

    data: Annotated[str, tyro.conf.Positional]
    """`embedded`, a file, a folder, or a Hub id."""
    out: Annotated[Path, tyro.conf.Positional]
    """The .jsonl or .json file to write."""
    to: Literal["trl", "openai", "sharegpt", "swift", "alpaca"] = "trl"
    """The layout. Each row that is written reads back as the same."""
    limit: int | None = None
    """Use at most this many rows, drawn with the seed 0."""


@dataclass(frozen=True, kw_only=True)
class MergeOptions:
    """Add a LoRA adapter into its base model: the result is one whole model, which every command takes."""

    adapter: Annotated[Path, tyro.conf.Positional]
    """Folder of the adapter, such as RUN/adapter."""
    output: Path
    """Folder for the whole model, new or empty."""
    model: str | None = None
    """The base model that the adapter was trained on; None takes the one that the adapter names."""
    trust_remote_code: bool = False
    """Run Python code that comes with a Hub model. Read it first."""


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Put runs side by side: the settings that differ, the results, the curves."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders."""
    figure: Path | None = None
    """Write the overlaid curves to this .png, .pdf or .svg file."""
    csv: Path | None = None
    """Write the table to this .csv or .jsonl file."""


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Write the report and the model's card of a run again, from what it recorded."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run's folder."""


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """Read the log of a run, of whichever tool, and say what is wrong with it."""

    log: Annotated[Path, tyro.conf.Positional]
    """A run folder, a checkpoint or output folder with trainer_state.json (TRL, axolotl), LLaMA-Factory's
    trainer_log.jsonl, a TensorBoard event file, or a .csv export."""
    other: Annotated[Path | None, tyro.conf.Positional] = None
    """The log of a second run: says whether rewards and margins of the two can be compared."""
    html: Path | None = None
    """Write the diagnosis with its curves to this .html file."""


@dataclass(frozen=True, kw_only=True)
class SweepOptions(PrecisionOption, SweepSettings):  # pyright: ignore[reportIncompatibleVariableOverride]
    """Search for good knobs: several short runs, stored in a study that many processes may work on at once."""

    study: Path | None = None
    """Folder of the study: a new one begins it, one that is there is joined. None makes runs/sweep-DATE-TIME."""
    cache: Path | None = None
    """File or folder of the reference's log-probs; None takes ~/.cache/dpo-lab or DPO_LAB_CACHE."""


@dataclass(frozen=True, kw_only=True)
class LossesOptions:
    """Print the table of losses: what each does, its knobs, its source."""


@dataclass(frozen=True, kw_only=True)
class RecipesOptions:
    """Print ready settings for models and preference sets of the Hub, each as a line of `dpo-lab train`."""


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Train on the embedded model and data, and show before and after. Two minutes on a laptop."""

    run: Path | None = None
    """Folder of the run; None makes runs/demo-DATE-TIME."""
    seed: int = 0
    """The one source of randomness."""
    device: str = "auto"
    """`auto` takes the GPU where there is one."""


@dataclass(frozen=True, kw_only=True)
class RealOptions(PrecisionOption):
    """Align a real model with DPO on its own answers, and show before and after. Ten minutes on a laptop."""

    model: str = "smollm2"
    """`smollm2`, or another chat model: a folder, a .gguf file, or a Hub id. Give --sample with another one: the saved
    pairs are answers of smollm2."""
    sample: int = 0
    """Sample new pairs from the model's answers to this many tasks, which takes about a second a task; 0 takes the
    saved pairs."""
    pairs: int = 320
    """At most this many pairs."""
    tasks: int = 160
    """Test tasks, answered before and after."""
    epochs: float = 1.0
    """Passes over the pairs."""
    loss: LossName = "rpo"
    """`rpo` is DPO plus the cross-entropy of the chosen answers, which keeps them likely; `dpo` is DPO alone."""
    learning_rate: float = 5e-5
    """Highest learning rate."""
    beta: float = 0.1
    """Price of drifting from the reference."""
    batch_size: int = 8
    """Pairs per step."""
    run: Path | None = None
    """Folder of the run; None makes runs/real-DATE-TIME."""
    seed: int = 0
    """The one source of randomness."""
    device: str = "auto"
    """`auto` takes the GPU where there is one."""

    def __post_init__(self) -> None:
        for name, least in (("sample", 0), ("pairs", 8), ("tasks", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} must be at least {least}, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class LabOptions:
    """Open the course in JupyterLab, on this machine only."""

    folder: Path | None = None
    """Work on a copy of the course in this folder: a new or empty one is filled, in an earlier copy the files that you
    have not changed are renewed. None opens a checkout's own notebooks, and elsewhere takes ./dpo-lab-course."""
    port: int = 8888
    """Port on the loopback address; the next free one is taken if it is in use."""
    browser: bool = True
    """Open the browser."""


def check_kl_prompts(number: int) -> None:
    """The standard error is over prompts, so one alone has none."""
    if number < 0 or number == 1:
        raise ValueError(f"kl_prompts must be 0 or at least 2, got {number}; 64 is usual, 0 leaves the estimate out")


COMMANDS = {
    "train": TrainOptions,
    "sft": SFTOptions,
    "rounds": RoundsOptions,
    "cache": CacheOptions,
    "evaluate": EvaluateOptions,
    "sample": SampleOptions,
    "inspect": InspectOptions,
    "convert": ConvertOptions,
    "merge": MergeOptions,
    "compare": CompareOptions,
    "report": ReportOptions,
    "doctor": DoctorOptions,
    "sweep": SweepOptions,
    "losses": LossesOptions,
    "recipes": RecipesOptions,
    "demo": DemoOptions,
    "real": RealOptions,
    "lab": LabOptions,
}

HOME = {
    "sft": "train",
    **dict.fromkeys(("cache", "evaluate", "sample", "merge"), "models"),
    **dict.fromkeys(("inspect", "convert"), "data"),
    **dict.fromkeys(("compare", "report", "losses", "recipes"), "tables"),
}
"""The module of `dpo_lab.workbench.cli` whose function of its name carries out a command, where it isn't its own."""

TOGETHER = (TrainOptions, SFTOptions, CacheOptions)
"""The commands that several processes of one launcher carry out together."""
