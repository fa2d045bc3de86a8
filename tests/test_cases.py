"""Small inputs that go wrong, from ../shared/cases, through the command: each gives what the table there says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from dpo_lab.preferences.token_data import TokenData
from tests.command_line import dpo_lab
from tests.conftest import ROOT, tiny_llama
from tests.small_tokenizers import CHATML, bpe
from tests.tiny import saved_model

CASES_FOLDER = ROOT.parent / "shared" / "cases"
NO_SYSTEM = "{%- if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif -%}"
NO_REASONING = CHATML.replace("m.content", "m.content.split('</think>')[-1]")


def chat(template: str = CHATML) -> Callable[[Path], Path]:
    """Makes the folder of a small Llama with this template."""
    return lambda folder: saved_model(folder, tiny_llama(400), bpe(template=template, eos="<|im_end|>"))


MODELS = {
    "chat": chat(),
    "no system turns": chat(NO_SYSTEM + CHATML),
    "no reasoning": chat(NO_REASONING),
    "no answers": chat(CHATML.replace("m.content", "m.content.split('<think>')[0]")),
    "stories260k": lambda _: ROOT.parent / "shared" / "real" / "models" / "stories260k",
}


class Case(NamedTuple):
    """A file, and what `dpo-lab train` must make of it."""

    file: str
    say: tuple[str, ...] = ()
    """What it prints, as texts that must all be there."""
    arguments: tuple[str, ...] = ("--validation", "0")
    status: int = 0
    model: str = "chat"
    prompt: str = ""
    """What the first row's prompt holds, as text of its tokens."""
    answers: tuple[str, str] | None = None
    """The first row's answers, as text of their tokens."""


RIVERS = ("Rhine.<|im_end|>", "A lake.<|im_end|>")
ASKED = "<|im_start|>user\nName a river.<|im_end|>\n<|im_start|>assistant\n"
SKIP = ("--validation", "0", "--on-bad-row", "skip", "--max-length", "256")

CASES = {
    "a template refuses system turns": Case(
        "system_refused_by_template.jsonl", ("system_refused_by_template.jsonl, line 3", "no system turn", "skip"),
        status=2, model="no system turns",
    ),
    "a template refuses system turns, skip": Case(
        "system_refused_by_template.jsonl", ("left out, unusable: 1", "line 3", "no system turn", "5 rows to train on"),
        SKIP, model="no system turns",
    ),
    "a system turn is too long": Case(
        "system_turn_too_long.jsonl", ("system_turn_too_long.jsonl, line 3", "tokens that must be kept", "skip"),
        ("--validation", "0", "--max-length", "256"), status=2,
    ),
    "a system turn is too long, skip": Case(
        "system_turn_too_long.jsonl", ("left out, unusable: 1", "line 3", "5 rows to train on"), SKIP
    ),
    "tools in the request": Case("openai_input_tools.jsonl", prompt="get_weather"),
    "messages as Python": Case("messages_as_python_text.csv", ("messages written as text, read as messages: 1",),
                               prompt="<|im_start|>user\na?", answers=("x<|im_end|>", "u<|im_end|>")),
    "messages as JSON": Case("messages_as_json_text.jsonl", ("messages written as text, read as messages: 1",),
                             prompt=ASKED, answers=RIVERS),
    "the answer in the conversation": Case(
        "answer_already_in_conversation.json", ("ended with one of the answers, which was taken once: 1 (row 0)",),
        prompt=ASKED, answers=RIVERS,
    ),
    "a template without reasoning": Case(
        "template_drops_reasoning.jsonl",
        ("the chat template leaves out text of 8 answers, such as '<think>count on from 0", "rows: 4 (line 1, line 2"),
        model="no reasoning", answers=("It is 1.<|im_end|>", "It is 2.<|im_end|>"),
    ),
    "a template that leaves out all that differs": Case(
        "template_drops_reasoning.jsonl",
        ("holds no usable row", "alike since the chat template leaves out where they differ: 4 (line 1, line 2"),
        status=2, model="no answers",
    ),
    "an image": Case("image_placeholder.jsonl", ("field 'images' belongs to the <image>", "skip"), status=2),
    "an image, skip": Case(
        "image_placeholder.jsonl", ("left out, unusable: 1", "field 'images' belongs to the <image>"), SKIP, status=2
    ),
    "messages and chosen, a message": Case("messages_chosen_dict.jsonl", prompt=ASKED, answers=RIVERS),
    "messages and chosen, a list": Case("messages_chosen_list.jsonl", prompt=ASKED, answers=RIVERS),
    "messages and chosen, a text": Case("messages_chosen_text.jsonl", prompt=ASKED, answers=RIVERS),
    "system and input": Case("system_input_chosen.jsonl", prompt="<|im_start|>system\nYou are terse.<|im_end|>",
                             answers=("Rhine.<|im_end|>", "Perhaps a lake would do.<|im_end|>")),
    "chosen_response": Case("chosen_response.jsonl", prompt=ASKED, answers=RIVERS),
    "preferenceLabel": Case("candidates_preference_label.jsonl", ("layout: candidates",), prompt="system\nbrief",
                            answers=("x<|im_end|>", "u<|im_end|>")),
    "rank": Case("completions_with_rank.jsonl", ("layout: completions",), prompt=ASKED, answers=RIVERS),
    "a developer's turn": Case("developer_role.jsonl", prompt="<|im_start|>system\nBe brief.<|im_end|>"),
    "semicolons": Case("semicolon.csv", prompt="A", answers=("x<|im_end|>", "u<|im_end|>")),
    "alike after cutting": Case(
        "answers_alike_after_cutting.jsonl",
        ("holds no usable row", "alike since they are cut at max_length = 64, raise it: 4"),
        ("--validation", "0", "--max-length", "64"), status=2, model="stories260k",
    ),
    "one prompt": Case("one_prompt.jsonl", ("8 rows with 1 distinct prompt(s)", "--validation 0"), (), status=2),
}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Name → folder of a model, made once."""
    if not CASES_FOLDER.is_dir():
        pytest.skip("the folder of small inputs (../shared/cases) is absent")
    made: dict[str, Path] = {}

    def model(name: str) -> Path:
        if name not in made:
            made[name] = MODELS[name](tmp_path_factory.mktemp("model") / "model")
        if not made[name].is_dir():
            pytest.skip("the folder of real inputs (../shared/real) is absent")
        return made[name]

    return model


@pytest.mark.parametrize("name", CASES)
def test_a_case_gives_what_its_table_says(models, capsys, tmp_path, name):
    from transformers import AutoTokenizer

    case = CASES[name]
    folder = models(case.model)
    outcome = dpo_lab(capsys, "train", "--model", folder, "--pairs", CASES_FOLDER / case.file, "--samples", 0,
                   "--max-steps", 1, "--kl-prompts", 0, "--device", "cpu", "--cache", tmp_path / "reference.sqlite",
                   "--run", tmp_path / "run", *case.arguments)  # fmt: skip
    output = " ".join(f"{outcome.out} {outcome.err}".split())
    assert outcome.status == case.status, output
    for piece in case.say:
        assert " ".join(piece.split()) in output, output
    if case.status == 0:
        [saved] = tmp_path.glob("reference.sqlite-tokens/*/train")
        row, tokenizer = TokenData.load(saved).row(0), AutoTokenizer.from_pretrained(folder)
        assert case.prompt in tokenizer.decode(row.prompt)
        if case.answers is not None:
            assert tuple(map(tokenizer.decode, row.completions)) == case.answers
    with capsys.disabled():
        print(f"  {case.file:<36} {name}: {'as the table says' if case.status == 0 else outcome.message[:150]}")


def test_a_model_stops_in_plain_transformers_where_it_was_trained_to_stop(models, capsys, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    models("chat")  # skips where the inputs are absent
    base = saved_model(tmp_path / "base", tiny_llama(400), bpe(template=CHATML, eos="<eos>"))
    outcome = dpo_lab(capsys, "sft", "--model", base, "--pairs", CASES_FOLDER / "stop_where_trained.jsonl",
                   "--validation", 0, "--samples", 0, "--epochs", 40, "--learning-rate", 1e-2, "--schedule", "constant",
                   "--device", "cpu", "--cache", tmp_path / "reference.sqlite", "--run", tmp_path / "run")  # fmt: skip
    assert outcome.status == 0, outcome.err
    folder = tmp_path / "run" / "model"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    [saved] = tmp_path.glob("reference.sqlite-tokens/*/train")
    row = TokenData.load(saved).row(0)
    prompt = torch.tensor([row.prompt.tolist()])
    written = model.generate(prompt, max_new_tokens=3 * len(row.completions[0]), do_sample=False)[0, prompt.shape[1] :]
    assert written.tolist() == row.completions[0].tolist()
    assert tokenizer.decode(written).endswith("<|im_end|>")
