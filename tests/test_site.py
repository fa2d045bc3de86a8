"""The site's sources say what the course and the package say. The site itself is built by `make site`, which checks its
links, and looked at by tests/browser/test_site.py."""

from __future__ import annotations

import importlib.util
import json
import random
import re
import runpy
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
import yaml

from dpo_lab import LOSSES, PairScores
from dpo_lab.course.saved_results import demand_share, read_real_model, read_results
from dpo_lab.course.statistics import rewards_at_kl
from dpo_lab.workbench.doctor import findings
from dpo_lab.worlds.comparisons import preference_probs
from dpo_lab.worlds.instructions import GROUPS, draw
from dpo_lab.worlds.tabular import kitchen_world, kl, optimal_logps
from tests.conftest import ROOT

SITE = ROOT / "site"


@pytest.fixture(scope="module")
def site() -> Iterator[dict[str, ModuleType]]:
    """The modules of the folder `site`, by name. None of them builds anything when it is imported."""
    sys.path.insert(0, str(SITE))
    try:
        yield {name: importlib.import_module(name) for name in ("figures", "sources", "links", "docstrings")}
    finally:
        sys.path.remove(str(SITE))


@pytest.fixture(scope="module")
def figures(site: dict[str, ModuleType]) -> dict[str, Any]:
    return {name: make() for name, (make, _) in site["figures"].FIGURES.items()}


def at(figure: Any, name: str, **places: int) -> Any:
    """A table of a figure where its controls stand, read by the rules that `figures.js` follows."""
    table = figure.tables[name]
    values = figure.tables[table["values"]]["values"] if isinstance(table["values"], str) else table["values"]

    def pick(values: Any, names: list[str]) -> Any:
        if not names:
            return values
        if names[0] in places:
            return pick(values[places[names[0]]], names[1:])
        return [pick(one, names[1:]) for one in values]

    return pick(values, table["by"])


def somewhere(figure: Any, times: int = 20) -> Iterator[dict[str, int]]:
    """Positions of a figure's controls, drawn at random."""
    chance = random.Random(0)
    for _ in range(times):
        yield {control.name: chance.randrange(len(control.texts)) for control in figure.controls}


near = partial(pytest.approx, rel=1e-5, abs=1e-6)


# The figures show what Python computes.


def test_every_table_has_an_entry_for_each_position_and_every_name_is_there(figures):
    for name, figure in figures.items():
        lengths = {control.name: len(control.texts) for control in figure.controls}
        for control in figure.controls:
            assert 0 <= control.start < len(control.texts), (name, control.name)
        for table in figure.tables.values():
            level = figure.tables[table["values"]]["values"] if isinstance(table["values"], str) else table["values"]
            for axis in table["by"]:
                assert len(level) == lengths.get(axis, len(level)), (name, axis)
                level = level[0]
        drawn = json.dumps([figure.panels, figure.sentence])
        named = set(re.findall(r"@(\w+)", drawn)) | set(re.findall(r"\{(\w+)", figure.sentence)) - set(lengths)
        assert named <= set(figure.tables), name
        used = named | {one["values"] for one in figure.tables.values() if isinstance(one["values"], str)}
        assert set(figure.tables) == used, f"{name} carries tables that nothing draws"


def test_the_data_are_small(figures):
    sizes = {name: len(json.dumps(figure.as_json(), ensure_ascii=False)) for name, figure in figures.items()}
    assert max(sizes.values()) < 120_000
    assert sum(sizes.values()) < 400_000


def test_the_loss_and_its_pull_are_the_packages_own_by_autograd(figures):
    figure = figures["loss"]
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for places in somewhere(figure):
        h, beta = float(figure.controls[0].texts[places["h"]]), np.geomspace(0.01, 1, 25)[places["beta"]]
        chosen = torch.tensor([h], dtype=torch.float64, requires_grad=True)
        loss = LOSSES["dpo"].bind(beta=float(beta))(PairScores(chosen, zero, zero, zero, one, one))
        (slope,) = torch.autograd.grad(loss.sum(), chosen)
        assert at(figure, "loss", **places) == near(loss.item())
        assert at(figure, "weight", **places) == near(-slope.item())
        assert at(figure, "gap", **places) == h


def test_the_optimum_is_the_closed_form_of_the_kitchen_world(figures):
    figure, world = figures["optimum"], kitchen_world()
    for places in somewhere(figure):
        beta, x = at(figure, "price", **places), places["prompt"]
        logps = optimal_logps(world, beta)
        # β itself is rounded to six digits, and where it is small a probability follows it exponentially.
        for y in range(world.shape[1]):
            drawn = at(figure, f"probs{y}", prompt=x)[places["beta"]]
            assert drawn == pytest.approx(logps[x, y].exp().item(), rel=1e-3, abs=1e-6)
        assert at(figure, "drift", **places) == pytest.approx(kl(logps, world.reference_logps)[x].item(), abs=1e-4)
        reward = (logps[x].exp() @ world.rewards[x]).item()
        assert at(figure, "reward", **places) == pytest.approx(reward, abs=1e-4)


def test_bradley_terry_is_the_worlds_model_of_a_labeller(figures):
    figure = figures["bradley-terry"]
    for places in somewhere(figure):
        gap, temperature = at(figure, "at", **places), float(figure.controls[1].texts[places["temperature"]])
        flip = float(figure.controls[2].texts[places["flip"]].removesuffix("%")) / 100
        rewards = torch.tensor([[gap, 0.0]], dtype=torch.float64)
        prob = preference_probs(rewards, temperature=temperature)[0, 0, 1].item()
        assert at(figure, "share", **places) == near((1 - flip) * prob + flip * (1 - prob))


def test_every_member_of_the_family_is_there_and_pulls_as_differences_say(figures):
    figure = figures["family"]
    names = figure.controls[0].texts
    assert set(LOSSES) <= set(names)
    assert {"dpo under forward_kl", "dpo under js", "dpo under alpha"} <= set(names)
    step, length, nats = 1e-5, 12.0, 2.0
    for places in somewhere(figure, 60):
        name, h = names[places["loss"]], at(figure, "gap", **places)
        loss = LOSSES["dpo"].bind(divergence=name.split()[-1]) if "under" in name else LOSSES[name].bind()

        def value(up: float, down: float, loss: Any = loss, h: float = h) -> float:
            before = -length * nats
            fields = (before + h / 2 + up, before - h / 2 + down, before, before, length, length)
            return loss(PairScores(*(torch.tensor([x], dtype=torch.float64) for x in fields))).item()

        assert at(figure, "value", **places) == near(value(0, 0))
        for table, sides in (("up", (step, 0.0)), ("down", (0.0, step))):
            differences = (value(-sides[0], -sides[1]) - value(*sides)) / (2 * step)
            here = at(figure, table, **places)
            if here != pytest.approx(differences, rel=1e-4, abs=1e-4):  # a corner, as hinge has one: one of its sides
                one_sided = [(value(0, 0) - value(*sides)) / step, (value(-sides[0], -sides[1]) - value(0, 0)) / step]
                assert any(here == pytest.approx(side, abs=1e-3) for side in one_sided), (name, h, table)


def test_margins_are_the_saved_quantiles(figures):
    figure = figures["margins"]
    saved = read_results("implicit_rewards.json", "")["margins over training"]
    for i, row in enumerate(saved):
        low, _, median, _, high = row["quantiles 5 25 50 75 95"]
        assert [at(figure, name, step=i) for name in ("low", "median", "high")] == [low, median, high]
        assert figure.controls[0].texts[i] == str(row["step"])
        assert float(at(figure, "wrong", step=i).removesuffix("%")) == pytest.approx(100 * row["wrong"])


@pytest.mark.parametrize(("name", "key"), [("turn", "step"), ("noise", "level")])
def test_failures_are_means_and_deviations_of_the_saved_rows(figures, site, name, key):
    figure = figures[name]
    rows = read_results("failures.json", "")["rows"]
    for layer in figure.panels[0]["layers"][1:]:
        number = layer["y"].removeprefix("@mean")
        for m, measure in enumerate(site["figures"].MEASURES):
            for j, place in enumerate(figure.tables["places"]["values"]):
                own = [row[measure] for row in rows if row["failure"] == name and row["method"] == layer["name"]
                       and row[key] == place]  # fmt: skip
                if name == "noise" and place == 0:  # no label is wrong: the run that all others are compared with
                    own = [row[measure] for row in rows if row["failure"] == "sound"]
                assert len(own) == 5
                mean, deviation = np.mean(own), np.std(own, ddof=1)
                assert at(figure, f"mean{number}", measure=m)[j] == near(mean)
                assert at(figure, f"high{number}", measure=m)[j] == near(mean + deviation)
                assert at(figure, f"low{number}", measure=m)[j] == near(mean - deviation)


def test_rewards_at_the_same_kl_are_those_of_the_statistics(figures, site):
    figure = figures["methods"]
    rows = read_results("rlhf_frontier.json", "")["rows"]
    for places in somewhere(figure):
        nats = at(figure, "nats", **places)
        for i, method in enumerate(site["figures"].COMPARED):
            values = np.array(list(rewards_at_kl(rows, method, nats).values()))
            drawn = at(figure, "mean", **places)[i]
            assert drawn is None if np.isnan(values).any() else drawn == near(values.mean())
    assert None in [mean for row in figure.tables["mean"]["values"] for mean in row]  # some do not go so far


def test_the_real_model_is_drawn_as_it_was_judged(figures, site):
    figure = figures["real-model"]
    made, rows = read_real_model()
    tasks = draw("test", made["prompts"], seed=0)
    for m, method in enumerate(site["figures"].METHODS):
        for g, belongs in enumerate(GROUPS.values()):
            expected = demand_share(rows, method, tasks, belongs)
            assert at(figure, "after_share", method=m)[g] == near(expected.share)
            assert at(figure, "after_low", method=m)[g] == near(expected.low)
            assert f"{expected.share:.0%} after" in at(figure, "noted", method=m, group=g)


def test_each_figure_has_its_place_on_the_page_and_a_still_picture_with_words(figures, site):
    text = (SITE / "text" / "try_it.md").read_text()
    assert re.findall(r"<!-- figure: ([\w-]+) -->", text) == list(figures)
    assert re.findall(r"^\(figure-([\w-]+)\)=$", text, re.MULTILINE) == list(figures)
    for name, figure in figures.items():
        picture, words = figure.still()
        assert picture.axes, name
        assert len(words) > 60, name
    for _, chapter in site["figures"].FIGURES.values():
        assert (ROOT / "notebooks" / f"{chapter}.ipynb").is_file()


# The pages.


def test_every_notebook_is_in_the_table_of_contents(site):
    text = (SITE / "text" / "index.md").read_text()
    (pattern,) = re.findall(r"^(notebooks/\[.*)$", text, re.MULTILINE)
    notebooks = site["sources"].notebooks()
    assert len(notebooks) >= 17
    assert sorted(ROOT.glob(f"{pattern}.ipynb")) == notebooks
    numbers = [site["sources"].number_of(path.stem) for path in notebooks]
    assert numbers.pop(numbers.index("2b")) == numbers[2] + "b"
    assert numbers == [str(number) for number in range(len(numbers))]


def test_every_room_and_every_module_of_the_package_is_in_the_reference(site):
    sources = site["sources"]
    modules = {module for room, _ in sources.rooms() for module, _ in sources.modules_of(room.rstrip("/"))}
    files = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in (ROOT / "dpo_lab").rglob("*.py")
        if "_data" not in path.parts and path.stem != "__main__"
    }
    assert files - modules == {"dpo_lab", "dpo_lab.workbench", "dpo_lab.course"}  # faces that only pass on
    assert modules <= files


@pytest.fixture(scope="module")
def chapters(site) -> dict[str, Any]:
    found = {}
    for path in site["sources"].notebooks():
        read = nbformat.read(path, as_version=4)
        found[path.stem] = (read, site["sources"].chapter(read, path.stem, lambda text: text))
    return found


def test_chapters_are_numbered_and_lose_nothing(chapters):
    for name, (notebook, made) in chapters.items():
        title = notebook.cells[0].source.split("\n")[0].removeprefix("# ")
        assert made.cells[0].source.startswith(f"# {name.split('_')[0].lstrip('0') or 0}. {title}\n")
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
        assert len(outputs) == sum(len(cell.get("outputs", ())) for cell in made.cells)
        assert notebook == nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)  # and stays as it was


def test_solutions_are_folded_behind_the_students_stub(chapters):
    for name, (notebook, made) in chapters.items():
        solutions = [cell for cell in notebook.cells if cell.metadata.get("nbgrader", {}).get("solution")]
        folded = [i for i, cell in enumerate(made.cells) if "hide-input" in cell.metadata.get("tags", ())]
        assert len(folded) == len(solutions) >= 2, name
        for i in folded:
            assert "NotImplementedError" in made.cells[i - 1].source
            assert "NotImplementedError" not in made.cells[i].source
        assert not any("BEGIN SOLUTION" in cell.source for cell in made.cells)


def test_every_picture_has_its_alternative_text(chapters):
    for name, (_, made) in chapters.items():
        for cell in made.cells:
            pictures = [output for output in cell.get("outputs", ()) if "image/png" in output.get("data", {})]
            assert len(pictures) <= 1, f"{name}, {cell.id}: one alternative text stands for the pictures of a cell"
            if pictures:
                assert cell.metadata.mystnb["image"]["alt"] == pictures[0].metadata["image/png"]["alt"]


def test_links_lead_to_pages_modules_and_files(site, tmp_path):
    written = site["sources"].Written(tmp_path)
    text = "[`dpo.py`](dpo.py) [data](../data/README.md#results) [l](../LICENSE) `[x](y)` [o](https://a.b) [h](#z)"
    mended = written.links(text, "dpo_lab/README.md")
    assert mended == text.replace("](dpo.py)", "](/reference/dpo.md)")
    assert (tmp_path / "LICENSE").is_file()
    for link in ("student/", "student/README.md"):
        assert written.links(f"[s]({link})", "notebooks/README.md") == "[s](/run_it.md#the-students-version)"


def test_every_page_that_a_page_links_to_is_a_page_of_the_site(site):
    pages = site["sources"].PAGES
    for page in pages:
        text = re.sub(r"^```.*?^```|`[^`\n]*`", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
        for link in re.findall(r"\]\((?!https?:|#|mailto:)([^)\s#]+\.md)", text):
            path = ((ROOT / page).parent / link).resolve().relative_to(ROOT).as_posix()
            assert path in pages or path.startswith(("data/results/", "notebooks/")), f"{page} → {link}"


def test_buttons_come_from_one_address(site, monkeypatch):
    sources = site["sources"]
    monkeypatch.setattr(sources, "project", dict)
    monkeypatch.delenv("GITHUB_REPOSITORY", raising=False)
    assert sources.repository() is None
    assert sources.home() == "http://localhost:8000/"
    assert not any("colab" in link for link in sources.chapter_links("00_quickstart"))
    monkeypatch.setenv("GITHUB_REPOSITORY", "Somebody/dpo")
    assert sources.home() == "https://somebody.github.io/dpo/"
    links = "\n".join(sources.chapter_links("03_loss_and_gradient"))
    path = "notebooks/03_loss_and_gradient.ipynb"
    assert f"https://colab.research.google.com/github/Somebody/dpo/blob/main/{path}" in links
    assert f"https://mybinder.org/v2/gh/Somebody/dpo/main?urlpath=lab/tree/{path}" in links
    assert "downloads/notebooks/student/03_loss_and_gradient.ipynb" in links
    assert "#figure-loss" in links
    monkeypatch.setattr(sources, "project", lambda: {"urls": {"Repository": "https://github.com/a/b/"}})
    assert sources.repository() == "https://github.com/a/b"


def test_docstrings_become_lists_blocks_and_code(site):
    made = site["docstrings"].as_restructured_text([
        "π(y|x) of `n`s, a*b.", "", "    r = a * b", "", "name: text", "    that goes on.", "other_: more.", "After.",
        "", "A ``` among these:", "    one  1", "Then prose.",
    ])  # fmt: skip
    assert made == [
        "π(y\\|x) of ``n``\\ s, a\\*b.", "", "::", "", "    r = a * b", "", "", "- name: text", "  that goes on.",
        "- other\\_: more.", "", "After.", "", "A \\`\\`\\` among these:", "", "::", "", "    one  1", "",
        "Then prose.",
    ]  # fmt: skip


def test_the_page_of_the_doctor_has_its_causes_and_limits_from_python(site):
    made = site["sources"]._with_doctor((SITE / "text" / "doctor.md").read_text())
    (data,) = re.findall(r'id="doctor-data">(.*)</script>', made)
    read = json.loads(data)
    assert list(read["causes"]) == list(findings.CAUSES)
    script = (SITE / "static" / "doctor.js").read_text()
    used = set(re.findall(r"\bL\.([A-Z_0-9]+)", script))
    assert used <= {name for name in read["limits"] if read["limits"][name] == getattr(findings, name)}
    assert set(re.findall(r"^      (\w+)\(\) \{", script, re.MULTILINE)) == set(findings.CAUSES) - {"beta"}  # two logs
    assert made.count("\n| ") == len(findings.CAUSES) + 1


def test_the_check_of_links_sees_what_is_broken(site, tmp_path):
    page = "<html><body id=here><a href='{}'>x</a>{}</body></html>"
    cases = {
        "#here": 0, "other.html#there": 0, "https://a.b/": 0, "#nowhere": 1, "other.html#here": 1, "gone.html": 1,
        "../outside.html": 1,
    }  # fmt: skip
    (tmp_path / "other.html").write_text("<p id=there>")
    for link, expected in cases.items():
        (tmp_path / "index.html").write_text(page.format(link, ""))
        assert len(site["links"].problems(tmp_path)) == expected, link
    fetched = ["<script src='https://cdn.x/y.js'></script>", "<img src='//x/y.png'>",
               "<link rel=stylesheet href='https://x/y.css'>"]  # fmt: skip
    for element in fetched:
        (tmp_path / "index.html").write_text(page.format("#here", element))
        assert len(site["links"].problems(tmp_path)) == 1, element
    (tmp_path / "index.html").write_text(page.format("#here", ""))
    (tmp_path / "a.css").write_text("@import 'https://x/y.css'; b { background: url(data:image/png;base64,aa) }")
    assert len(site["links"].problems(tmp_path)) == 1
    assert site["links"].problems(tmp_path / "empty")


# How it is built and published.


def test_nothing_is_fetched_from_elsewhere():
    conf = (SITE / "conf.py").read_text()
    assert 'mathjax_path = "mathjax/tex-svg.js"' in conf
    for path in [*SITE.glob("*.py"), *(path for path in (SITE / "static").iterdir() if path.suffix != ".png")]:
        text = path.read_text()
        assert not re.search(r"cdn|jsdelivr|unpkg|googleapis|cloudflare", text, re.IGNORECASE), path.name
        if path.suffix in (".js", ".css"):
            assert not re.search(r"(?:https?:)?//(?!www\.w3\.org)\w+\.\w", text), path.name


def test_the_configuration_is_read_and_runs_no_notebook(site):
    for name in ("myst_nb", "sphinxext.opengraph"):
        pytest.importorskip(name, reason="the extra `site` is not installed; `make site` installs it")
    values = runpy.run_path(str(SITE / "conf.py"))
    assert values["nb_execution_mode"] == "off"
    assert values["nitpicky"] is True
    assert values["exclude_patterns"] == ["downloads"]  # nothing else is left out
    assert all(importlib.util.find_spec(name) for name in values["extensions"])
    script, licence = site["sources"].mathjax()
    assert script.name == Path(values["mathjax_path"]).name
    assert "Apache" in licence.read_text()
    configuration = json.dumps([values["html_static_path"], values["html_css_files"], values["mathjax3_config"]])
    assert "http" not in configuration


def test_the_workflow_builds_what_make_builds_and_publishes_it():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "site.yml").read_text())
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert any(step.get("run", "").strip() == "make site" for step in steps)
    (upload,) = (step for step in steps if "upload-pages-artifact" in step.get("uses", ""))
    assert upload["with"]["path"] == "build/site"
    assert any("deploy-pages" in step.get("uses", "") for step in steps)
    assert workflow["permissions"] == {"contents": "read"}  # only the job that publishes may more
    assert workflow["jobs"]["publish"]["permissions"] == {"pages": "write", "id-token": "write"}


def test_binder_installs_the_course_at_the_pinned_versions():
    folder = ROOT / ".binder"
    lines = (folder / "requirements.txt").read_text().splitlines()
    asked = [line for line in lines if line and not line.startswith("#")]
    assert "--constraint ../constraints.txt" in asked  # pip reads it relative to this file
    assert "--editable .[course]" in asked  # and this relative to where it runs: the repository
    assert (folder / "../constraints.txt").resolve() == ROOT / "constraints.txt"
    assert (folder / "runtime.txt").read_text().strip() == "python-3.11"


def test_every_term_of_the_glossary_names_a_chapter():
    text = (SITE / "text" / "glossary.md").read_text()
    body = text.split("```{glossary}")[1].split("```")[0]
    terms = re.findall(r"^(\S.*)\n  (.*)$", body.replace(":sorted:\n", ""), re.MULTILINE)
    assert len(terms) >= 50
    for term, meaning in terms:
        chapters = re.findall(r"\[[Cc]hapter (\w+)\]\(notebooks/(\d\d\w?)_\w+\.ipynb\)", meaning)
        assert chapters, term
        assert all(number.zfill(len(file)) == file for number, file in chapters), term
