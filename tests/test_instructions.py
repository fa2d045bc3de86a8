"""The instructions world: its tasks, its judge against a person's verdicts and attempts to game it, its pairs."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import replace
from random import Random

import pytest

from dpo_lab.worlds.instructions import (
    HOW,
    KINDS,
    SECTIONS,
    TEST_TOPICS,
    TOPICS,
    TRAIN_TOPICS,
    Demand,
    Task,
    Verdict,
    draw,
    is_refusal,
    judge,
    no_answer,
    pair_answers,
    safety,
    tasks,
    text,
    tools,
)  # fmt: skip
from dpo_lab.worlds.instructions.judging import check_demand
from dpo_lab.worlds.instructions.kinds import TEXT_KEYS
from dpo_lab.worlds.instructions.revising import REPAIRS, revise
from tests.instruction_verdicts import CALL, CASES, SCHEMAS, THREE, A, B, C, topical
from tests.instruction_writer import texts

SPLITS = ("train", "test")


def values_of(kind):
    """Every value that is likely to be drawn for a kind."""
    found = []
    for seed in range(100):
        values = kind.draw(Random(seed))
        found += [] if values in found else [values]
    return found


def fingerprint(drawn):
    return hashlib.sha256(json.dumps([(task.prompt, str(task.demands)) for task in drawn]).encode()).hexdigest()[:16]


# ── the judge ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_table_is_large_and_every_kind_has_a_hit_a_miss_and_an_attempt_to_game_it():
    assert len(CASES) >= 150
    for kind in [*KINDS, "tool_call", "decline", "help"]:
        signs = {sign for task, sign, *_ in CASES if task.demands[0].kind == kind}
        assert signs == {"+", "-", "x"}, kind


@pytest.mark.parametrize(("task", "sign", "why", "answer"), CASES)
def test_the_judge_agrees_with_a_careful_person(task, sign, why, answer):
    verdict = judge(task, answer)
    found = "+" if verdict.all_met else "-" if verdict.answers else "x"
    assert found == sign, f"{why}: {verdict.why}, {verdict.reasons}"
    assert verdict.answers == (not no_answer(task, answer))
    assert verdict.score == (1.0 if sign == "+" else 0.0)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_example_meets_its_demand_whatever_was_drawn(kind):
    for values in values_of(kind):
        met, found = kind.check(kind.example(**values), **values)
        assert met, (values, found)
        assert not kind.check("", **values)[0] or kind.name in NOTHING_MEETS


NOTHING_MEETS = {"max_words", "lowercase", "uppercase", "no_commas", "no_numbers", "avoid", "formal", "plain"}
"""What an empty text meets: so the judge asks first whether a text answers."""


def test_the_score_is_the_share_of_demands_and_every_demand_has_its_reason():
    task = topical("no_commas")
    task = replace(task, demands=(*task.demands, *topical("lowercase").demands, *topical("question").demands))
    verdict = judge(task, "Bread is good and old. Do you like it too?")
    assert verdict.met == (True, False, True)
    assert verdict.score == pytest.approx(2 / 3)
    assert not verdict.all_met
    assert verdict.reasons[1] == "lowercase: capital letters in 'Bread'"
    assert verdict.why == "an answer"
    nothing = judge(task, "Well?")
    assert (nothing.met, nothing.score, nothing.answers) == ((False, False, False), 0, False)
    assert nothing.why == "1 words, an answer here has at least 8"
    assert nothing.reasons[0] == "no_commas: no commas"


LONG = 10_000
PIECES = (
    "a", "a ", ". ", "* ", "*", "**a", "a**\n", "(", "(a ", "\n", " ", " \n", "\t-\t", "\nP.S. ", "{", "[", '{"a":',
    "<<", "# ", "a-", "a_", "1. ", "1.", "|", "| - ", '"', "```json\n", "i can not ", "you can ", "don't ", "e.g. ",
    "...", "!?", '."', "A. ", "9", "\ud800", "\0", "é", "١", "İ", "🍞", "\u2028", "a\u0301", "sorry ", "is a ",
)  # fmt: skip
HUGE = (
    *(piece * (LONG // len(piece)) for piece in PIECES), *("a" + mark * LONG + "a" for mark in ".!?…\"')*_-#<> ,"),
    "**" + "a" * LONG, "P.S." + " " * LONG, "{" + '"a":1,' * (LONG // 6) + "}", '{"rating": ' + "9" * LONG + "}",
    "```" + " " * LONG, "<<" + "a" * LONG, "i" + " " * LONG, "sorry" + "a" * LONG, "you can" + " a" * (LONG // 2),
)  # fmt: skip


@pytest.mark.parametrize("number", range(len(HUGE)))
def test_no_text_makes_a_check_wait(number):
    """A pattern that goes back over the text again and again would need seconds for 10 kB."""
    judged = {task.demands[0].kind: task for task, *_ in CASES}
    checks = {name: lambda name=name: check_demand(judged[name].demands[0], HUGE[number]) for name in judged}
    checks |= {
        f"guards of {name}": lambda name=name: no_answer(judged[name], HUGE[number]) for name in ("json", "formal")
    }
    for name, check in checks.items():
        began = time.process_time()
        check()
        assert time.process_time() - began < 0.5, name


def test_no_text_makes_it_raise():
    rng = Random(0)
    judged = [*{task.demands[0].kind: task for task, *_ in CASES}.values()]
    answers = [answer for *_, answer in CASES if len(answer) > 2]
    signs = "{}[]()<>|*#\"'“”.,!?:;-_\\/\n\t\r\x00\u200b\ud83c\uffff aZ9é中🍞"
    for _ in range(1500):
        one, other = rng.choice(answers), rng.choice(answers)
        torn = (
            one[: rng.randrange(len(one))] + rng.choice(signs) * rng.randrange(3) + other[rng.randrange(len(other)) :]
        )
        verdict = judge(rng.choice(judged), torn)
        assert 0 <= verdict.score <= 1


@pytest.mark.parametrize("num", [2, 3, 4])
def test_a_text_that_was_cut_off_does_not_meet_what_asks_for_its_end(num):
    """Sampling stops at a number of tokens: whatever asks how a text ends must see that it has not ended."""
    for kind, whole in {
        "sentences": " ".join((A, B, C, "Try it!")[:num]),
        "json": '{"name": "Rye bread", "tags": ["food", "oven"]}',
        "quoted": f'"{THREE}"',
        "question": f"{THREE} Do you like bread?",
    }.items():
        values = {"sentences": {"num": num}, "json": {"keys": ["name", "tags"]}}.get(kind, {})
        assert judge(topical(kind, **values), whole).all_met
        for end in range(1, len(whole)):
            assert not judge(topical(kind, **values), whole[:-end]).all_met, whole[:-end]


@pytest.mark.parametrize(
    ("sample", "wanted"),
    [
        ("One. Two! Three? Four…", 4), ("Dr. Smith met Mrs. Jones. They left.", 2), ("It costs 3.50 today. Good.", 2),
        ("Wait... what? No.", 2), ("He said: \"No!\" and left. So it ends.", 2), ("no end", 1), ("", 0), ("... !", 0),
        ("A list:\n* one thing\n* two things", 3), ("It is 5 p.m. now. Go.", 2), ("It is 5 p.m. Go now.", 2),
        ("We like tea, milk, etc. They do not.", 2), ("bread... it is good. yes.", 3), ("Vitamin C. It is good.", 2),
        ("# Title\nA text.", 2), ("So do I. You do too.", 2), ("Ja.Nein.", 1), ("Why?! Well.", 2),
        ("**Bold.** More.", 2),
    ],
)  # fmt: skip
def test_sentences_by_hand(sample, wanted):
    assert len(text.sentences(sample)) == wanted, text.sentences(sample)


@pytest.mark.parametrize(
    ("sample", "wanted"),
    [
        ("well-known don't it’s", 3), ("* one\n- two\n3. three\n## four", 4), ("state-of-the-art", 1), ("a-b-c-d-e", 2),
        ("3.5 is 7/2", 5), ("is_useful", 1), ("naïve café 中文", 3), ("— … ***", 0), ("rock'n'roll", 1), ("one—two", 2),
    ],
)  # fmt: skip
def test_words_by_hand(sample, wanted):
    assert len(text.words(sample)) == wanted, text.words(sample)


@pytest.mark.parametrize("topic", TOPICS)
def test_a_topic_meets_its_own_words(topic):
    task = replace(topical("no_numbers"), topic=topic, topic_words=TOPICS[topic], hint=())
    assert judge(task, f"Most of us have seen or heard of {topic} at some time.").answers


@pytest.mark.parametrize(
    ("topic", "near"),
    [
        ("honey bees", "been"), ("the sea", "season"), ("tea", "teams"), ("stars", "started"), ("spring", "may"),
        ("cats", "category"), ("a market", "good"), ("running", "runic"), ("the wind", "airline"),
    ],
)  # fmt: skip
def test_a_word_that_only_begins_alike_is_not_about_the_topic(topic, near):
    task = replace(topical("no_numbers"), topic=topic, topic_words=TOPICS[topic], hint=())
    assert judge(task, f"That one has {near} in it, and that is all.").why == f"no word about {topic}"


@pytest.mark.parametrize(
    ("answer", "refuses"),
    [
        ("I'm sorry, but I can't help with that.", True), ("I am unable to provide this.", True),
        ("We cannot assist with such a request.", True), ("Sorry, but as a model I am not able to do so.", True),
        ("I must decline.", True), ("I don't have the ability to write about it.", True), ("I won't do that.", True),
        ("I’m not able to share that.", True), ("I'm sorry to hear that you are ill. Get well soon!", False),
        ("I can't wait to bake.", False), ("I can't help but smile at it.", False), ("I do not give up.", False),
        ("I can't tell you how good it is.", False),
        ("A lock cannot help you against all.", False), ("As a baker, I don't sleep long.", False),
        ("It is good. " * 20 + "I can't help with that.", False),
    ],
)  # fmt: skip
def test_what_a_refusal_is(answer, refuses):
    assert is_refusal(answer) == refuses


def test_a_refusal_is_no_answer_in_any_section_but_safety():
    for section in ("format", "system"):
        for task in draw("train", 50, sections=[section]):
            refusal = f"I'm sorry, but I can't write about {task.topic} for you, my friend."
            assert judge(task, refusal).score == 0


# ── tasks ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_same_seed_gives_the_same_tasks_everywhere():
    assert fingerprint(draw("train", 100)) == "a0d233f3040fcbe5"
    assert fingerprint(draw("test", 100)) == "7d56d6a0abd87a22"
    assert fingerprint(draw("train", 100)) != fingerprint(draw("train", 100, seed=1))
    assert draw("train", 50) == draw("train", 100)[:50]


@pytest.mark.parametrize("seed", range(3))
def test_no_prompt_of_the_test_split_is_in_the_train_split(seed):
    trained = {str(task.prompt) for other in range(3) for task in draw("train", 1000, seed=other)}
    tested = [str(task.prompt) for task in draw("test", 1000, seed=seed)]
    assert len({*tested}) == 1000
    assert not trained & {*tested}


def test_there_are_enough_kinds_and_topics_and_the_unseen_ones_are_for_the_test_split_only():
    assert len(KINDS) >= 25
    assert len(TOPICS) >= 40
    assert not {*TRAIN_TOPICS} & {*TEST_TOPICS}
    train, test = ([task for seed in range(3) for task in draw(split, 1000, seed=seed)] for split in SPLITS)
    topical_train = [task for task in train if task.section in ("format", "system")]
    assert {demand.kind for task in topical_train for demand in task.demands} == {
        k for k in KINDS if KINDS[k].is_trained
    }
    assert {task.topic for task in topical_train} == {*TRAIN_TOPICS}
    assert all(task.kinds_seen and task.topic_seen for task in train)
    topical_test = [task for task in test if task.section in ("format", "system")]
    assert {demand.kind for task in topical_test for demand in task.demands} == {*KINDS}
    assert {task.topic for task in topical_test} == {*TOPICS}
    for task in topical_test:
        assert {KINDS[demand.kind].is_trained for demand in task.demands} == {task.kinds_seen}
        assert task.topic_seen == (task.topic in TRAIN_TOPICS)
        assert task.kinds_seen or not task.topic_seen
    called = [{task.topic for task in drawn if task.section == "tools"} for drawn in (train, test)]
    assert called == [{tool.name for tool in tools.TRAIN_TOOLS}, {tool.name for tool in tools.TOOLS}]
    offered = {tool["name"] for task in train if task.section == "tools" for tool in task.demands[0].values["tools"]}
    assert offered == called[0]
    unseen = {request for decline, help_, _ in safety.REQUESTS[-safety.NUM_TEST :] for request in (decline, help_)}
    assert not any(request in task.prompt[-1]["content"] for task in train for request in unseen)


@pytest.mark.parametrize("split", SPLITS)
def test_the_sections_have_their_shares(split):
    drawn = draw(split, 300)
    for section, share in SECTIONS.items():
        assert sum(task.section == section for task in drawn) / 300 == pytest.approx(share, abs=0.07), section


@pytest.mark.parametrize("split", SPLITS)
def test_no_task_asks_for_the_impossible(split):
    """A writer that knows the demands finds a text that meets them all, within the judge's guards."""
    for task in draw(split, 1000, sections=["format", "system"]):
        assert any(judge(task, answer).all_met for answer in texts(task)), task.prompt


def test_the_right_call_and_a_refusal_meet_their_tasks():
    for split in SPLITS:
        for task in draw(split, 200, sections=["tools"]):
            assert judge(task, json.dumps(task.demands[0].values["call"])).all_met
            assert judge(task, "Sure.").score == 0
        for task in draw(split, 50, sections=["safety"]):
            refusal = judge(task, "I'm sorry, but I can't help you with that.")
            assert refusal.all_met == (task.demands[0].kind == "decline")


def test_what_contradicts_and_what_does_not():
    def demand(kind, **values):
        return Demand(kind, "", values)

    comma, none = demand("begin", start="Well,"), demand("no_commas")
    assert tasks.contradicts([comma, none])
    assert not tasks.contradicts([demand("begin", start="Of course."), none])
    assert not tasks.contradicts([comma])
    assert tasks.contradicts([demand("avoid", word="is"), demand("end", end="That is all.")])
    assert not tasks.contradicts([demand("avoid", word="it"), demand("end", end="That is all.")])
    assert tasks.contradicts([demand("json", keys=["rating", "year"]), demand("include", needed=["silver"])])
    assert not tasks.contradicts([demand("json", keys=["name", "year"]), demand("include", needed=["silver"])])
    assert tasks.contradicts([demand("quoted"), demand("title")])


@pytest.mark.parametrize("split", SPLITS)
def test_a_task_has_one_demand_of_a_group_and_none_that_clashes(split):
    for task in draw(split, 1000, sections=["format", "system"]):
        groups = [KINDS[demand.kind].group for demand in task.demands]
        assert 1 <= len(groups) <= 3
        assert len({*groups}) == len(groups)
        for demand, group in zip(task.demands, groups, strict=True):
            barred = tasks.CLASHES.get(group, set()) | tasks.CLASHES.get(demand.kind, set())
            assert not barred & {*groups}


def test_everything_is_put_in_several_ways_and_the_last_is_for_the_test_split_only():
    assert all(len(kind.phrasings) >= (3 if kind.is_trained else 2) for kind in KINDS.values())
    used = {split: {} for split in SPLITS}
    for split in SPLITS:
        for task in [task for seed in range(6) for task in draw(split, 1000, seed=seed, sections=["format", "system"])]:
            for demand in task.demands:
                kind = KINDS[demand.kind]
                form = next(
                    i for i in range(len(kind.phrasings)) if tasks.phrase(kind, demand.values, i) == demand.text
                )
                used[split].setdefault(kind.name, set()).add(form)
                assert demand.text in " ".join(turn["content"] for turn in task.prompt)
    for name, kind in KINDS.items():
        assert used["test"][name] == {*range(len(kind.phrasings))}
        assert used["train"].get(name, set()) == ({*range(len(kind.phrasings) - 1)} if kind.is_trained else set())


def test_a_system_task_has_its_demands_in_the_system_turn_and_half_of_those_with_one_an_example():
    drawn = [task for split in SPLITS for task in draw(split, 1000, sections=["system"])]
    shown = 0
    for task in drawn:
        assert task.prompt[0]["role"] == "system"
        assert task.prompt[-1]["role"] == "user"
        assert not any(demand.text in task.prompt[-1]["content"] for demand in task.demands)
        assert len(task.prompt) in (2, 4)
        if len(task.prompt) == 4:
            shown += 1
            demand = task.demands[0]
            assert len(task.demands) == 1
            assert task.hint == ()
            assert KINDS[demand.kind].check(task.prompt[2]["content"], **demand.values)[0]
            assert judge(task, task.prompt[2]["content"]).score == 0  # a copy of the example is no answer
        else:
            assert [turn["role"] for turn in task.hint] == ["user", "assistant"]
    singles = sum(len(task.demands) == 1 for task in drawn)
    assert shown / singles == pytest.approx(0.5, abs=0.06)


def test_a_hint_meets_the_demands_and_never_stands_in_the_prompt():
    for task in draw("train", 300) + draw("test", 300):
        assert task.row() == {"prompt": task.prompt}
        examples = [turn["content"] for turn in task.hint if turn["role"] == "assistant"]
        assert not any(example in turn["content"] for example in examples for turn in task.prompt)
        if task.section == "format":
            for demand, example in zip(task.demands, examples, strict=True):
                assert KINDS[demand.kind].check(example, **demand.values)[0]
                says_nothing = demand.kind == "json" and not TEXT_KEYS & {
                    *demand.values["keys"]
                }  # {"rating": 4} has no words
                assert judge(task, example).score == 0 or says_nothing
        elif task.section == "safety":
            assert safety.check(examples[0], task.demands[0].kind)[0]
        elif task.section == "tools":
            schema = tools.EXAMPLE[0].schema
            assert tools.check_call(examples[0], "arguments", tools.EXAMPLE[1], [schema])[0]


def test_mistakes_are_answered_with_the_value_the_rule_and_the_remedy():
    with pytest.raises(ValueError, match=r"split 'dev' is not known; choose train or test"):
        draw("dev", 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"num must be at least 1, got 0; 200 is the usual start"):
        draw("train", 0)
    with pytest.raises(
        ValueError, match=r"sections are \['poems'\]; choose one or more among format, system, tools, safety"
    ):
        draw("train", 1, sections=["poems"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"sections are \[\]; choose"):
        draw("train", 1, sections=[])
    with pytest.raises(ValueError, match=r"there are no 500 different tasks in safety; \d+ were found"):
        draw("train", 500, sections=["safety"])
    with pytest.raises(ValueError, match=r"how 'best' is not known; choose one of near_length, best_worst, random"):
        pair_answers([], [], how="best")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"1 tasks and answers to 2; give one list of answers per task"):
        pair_answers([topical("lowercase")], [[], []])


# ── pairs ────────────────────────────────────────────────────────────────────────────────────────────────────────────

LOWER = topical("lowercase")
COMMAS = topical("no_commas")
BOTH = replace(LOWER, demands=(*LOWER.demands, *COMMAS.demands))
FULL = "bread is made of flour and water by all of us."  # 11 words, both demands
FULL_LONG = "bread is made of flour and water by all of us and it smells good in the early morning hours too."
HALF = "bread is made of flour, water, salt and yeast."  # 9 words, no capital letter
NONE = "Bread is made of flour, water and a little salt, as all of us know."  # 15 words, neither
NOT = "bread"


def chosen_and_rejected(rows):
    return [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in rows]


def test_the_answers_to_pair_score_as_they_say():
    assert [judge(BOTH, answer).score for answer in (FULL, FULL_LONG, HALF, NONE, NOT)] == [1, 1, 0.5, 0, 0]
    assert [judge(BOTH, answer).answers for answer in (FULL, FULL_LONG, HALF, NONE, NOT)] == [True] * 4 + [False]


def test_near_length_takes_the_nearest_and_best_worst_the_extremes():
    answers = [[FULL_LONG, NONE, HALF, FULL]]
    # In words: 20, 15, 9, 11. |log(12/10)| is the least distance of a pair whose scores differ.
    assert chosen_and_rejected(pair_answers([BOTH], answers)) == [(FULL, HALF)]
    worst = [pair_answers([BOTH], answers, how="best_worst", seed=seed)[0] for seed in range(20)]
    assert {(row["score_chosen"], row["score_rejected"]) for row in worst} == {(1, 0)}
    drawn = {chosen_and_rejected(pair_answers([BOTH], answers, how="random", seed=seed))[0] for seed in range(60)}
    assert drawn == {(FULL, HALF), (FULL, NONE), (FULL_LONG, HALF), (FULL_LONG, NONE), (HALF, NONE)}


def test_no_answer_stands_in_two_pairs_of_a_task_and_equal_ones_count_once():
    answers = [[FULL_LONG, NONE, HALF, FULL, FULL, HALF]]
    for how in HOW:
        for seed in range(10):
            pairs = chosen_and_rejected(pair_answers([BOTH], answers, how=how, pairs_per_task=5, seed=seed))
            assert 1 <= len(pairs) <= 2
            used = [answer for pair in pairs for answer in pair]
            assert len({*used}) == len(used)
    near = chosen_and_rejected(pair_answers([BOTH], answers, pairs_per_task=2))
    assert near == [(FULL, HALF), (FULL_LONG, NONE)]


def test_a_tie_gives_no_pair_and_a_text_that_is_no_answer_is_never_chosen():
    assert pair_answers([BOTH], [[FULL, FULL_LONG]]) == []
    assert pair_answers([BOTH], [[NOT, NOT + "s"]]) == []
    assert pair_answers([BOTH], [[]]) == []
    assert chosen_and_rejected(pair_answers([BOTH], [[NOT, FULL]])) == [(FULL, NOT)]
    assert pair_answers([BOTH], [[NOT, NONE]], least_gap=0.01) == []  # one of them answers, and both score 0


def test_least_gap_is_the_least_difference_in_score():
    answers = [[FULL, HALF]]
    assert len(pair_answers([BOTH], answers, least_gap=0.5)) == 1
    assert pair_answers([BOTH], answers, least_gap=0.51) == []
    for wrong in (0, -1, 1.1):
        with pytest.raises(
            ValueError, match=r"least_gap must be above 0 and at most 1, got .*; 0.3 is the usual start"
        ):
            pair_answers([BOTH], answers, least_gap=wrong)


SAID = "Bread is made of flour, salt and 2 eggs. We eat bread, as you know, each day. It smells good"
REVISED = {
    "max_words": ({"most": 11}, "Bread is made of flour, salt and 2 eggs."),
    "word_range": ({"least": 8, "most": 11}, "Bread is made of flour, salt and 2 eggs."),
    "sentences": ({"num": 2}, "Bread is made of flour, salt and 2 eggs. We eat bread, as you know, each day."),
    "one_sentence": ({}, "Bread is made of flour, salt and 2 eggs."),
    "lowercase": ({}, SAID.lower()),
    "no_commas": ({}, SAID.replace(",", "")),
    "no_numbers": ({}, "We eat bread, as you know, each day. It smells good"),
    "bullets": (
        {"num": 2},
        "* Bread is made of flour, salt and 2 eggs.\n* We eat bread, as you know, each day.",
    ),
    "steps": (
        {"num": 2},
        "1. Bread is made of flour, salt and 2 eggs.\n2. We eat bread, as you know, each day.",
    ),
    "bold": ({}, SAID.replace("Bread", "**Bread**")),
    "begin": ({"start": "Well,"}, f"Well, {SAID}"),
    "end": ({"end": "The end."}, SAID.removesuffix(" It smells good") + " The end."),
    "question": ({}, SAID.removesuffix(" It smells good") + " What do you think about bread?"),
}


def test_every_revision_meets_its_demand_and_changes_nothing_else():
    assert {*REVISED} == {kind for kind in REPAIRS if not kind.startswith("tool_")}
    for kind, (values, wanted) in REVISED.items():
        task = topical(kind, **values)
        assert not judge(task, SAID).all_met, kind
        assert revise(task, SAID) == wanted
        assert judge(task, wanted).all_met, kind
        assert revise(task, wanted) == wanted
    assert revise(topical("formal"), SAID) == SAID  # no rule knows how
    assert revise(BOTH, SAID) == SAID.lower().replace(",", "")


def test_revised_answers_are_chosen_beside_themselves_and_only_where_sampling_gave_no_pair():
    rows = pair_answers([BOTH], [[NONE, SAID]], revised=True, pairs_per_task=3)
    assert {(row["source"], row["score_chosen"], row["score_rejected"]) for row in rows} == {("revised", 1.0, 0.0)}
    assert sorted(chosen_and_rejected(rows)) == sorted((text.lower().replace(",", ""), text) for text in (NONE, SAID))
    assert [row["source"] for row in pair_answers([BOTH], [[HALF, NONE]], revised=True)] == ["sampled"]
    assert pair_answers([BOTH], [[NONE, SAID]]) == []
    assert pair_answers([BOTH], [[NOT]], revised=True) == []  # in small letters it still is no answer


def test_the_right_call_replaces_any_answer_to_a_task_that_wants_one():
    for task in draw("train", 20, sections=["tools"]):
        call = task.demands[0].values["call"]
        for said in ("I am not sure.", '{"name": "sing", "arguments": {}}'):
            assert json.loads(revise(task, said)) == call
        right = json.dumps(call, indent=1)
        assert revise(task, right) == right
        (row,) = pair_answers([task], [["I am not sure."]], revised=True)
        assert (row["score_chosen"], row["score_rejected"], row["source"]) == (1.0, 0.0, "revised")


def test_another_judge_may_be_given():
    def shortest(task, answer):
        return Verdict(True, (len(answer) < 50,), ("",), "")

    rows = pair_answers([BOTH], [[FULL_LONG, HALF]], judge=shortest)
    assert chosen_and_rejected(rows) == [(HALF, FULL_LONG)]


def test_a_row_says_what_the_judge_said_and_is_what_training_reads(tmp_path):
    from dpo_lab import load_preferences

    rows = pair_answers([BOTH, LOWER], [[NONE, HALF], [FULL, NONE]])
    assert [row["task"] for row in rows] == [0, 1]
    assert {name: rows[0][name] for name in ("section", "kinds", "score_chosen", "score_rejected")} == {
        "section": "format", "kinds": ["lowercase", "no_commas"], "score_chosen": 0.5, "score_rejected": 0.0,
    }  # fmt: skip
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = load_preferences(path)
    assert [row["prompt"] for row in read] == [task.prompt for task in (BOTH, LOWER)]
    assert [row["chosen"] for row in read] == [row["chosen"] for row in rows]


def test_the_same_seed_gives_the_same_pairs():
    answers = [[FULL_LONG, NONE, HALF, FULL]] * 5
    for how in HOW:
        assert pair_answers([BOTH] * 5, answers, how=how, seed=3) == pair_answers([BOTH] * 5, answers, how=how, seed=3)
    assert pair_answers([BOTH] * 5, answers, how="random") != pair_answers([BOTH] * 5, answers, how="random", seed=1)


def test_a_call_is_checked_against_its_schema():
    def met(call, part="arguments"):
        return tools.check_call(json.dumps(call), part, CALL, SCHEMAS)[0]

    assert met(CALL)
    assert met({"arguments": {"day": "Monday", "city": " PARIS "}, "name": "get_weather"})
    assert not met({"name": "get_weather", "arguments": {"city": ["Paris"], "day": "Monday"}})
    timer = {"name": "set_timer", "arguments": {"minutes": 5}}
    for minutes, right in ((5, True), (5.0, True), ("5", False), (5.5, False), (True, False), (0, False), (6, False)):
        answer = json.dumps({"name": "set_timer", "arguments": {"minutes": minutes}})
        assert tools.check_call(answer, "arguments", timer, SCHEMAS)[0] == right, minutes


def test_a_task_is_data():
    task = draw("test", 1)[0]
    assert isinstance(task, Task)
    assert task == draw("test", 1)[0]
    with pytest.raises(AttributeError):
        task.topic = "cheese"  # type: ignore[misc]
