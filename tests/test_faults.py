"""Kills at random moments, and bent files of every kind: small counts of what `bench kills` and `bench fuzz` count in thousands."""
import json
import multiprocessing

import numpy as np
import pytest
from safetensors.torch import save_file

from liveavatar_nb.eval.fuzz import KINDS, Lab, attempt_case, bend_json, judge, tally, unclear
from liveavatar_nb.model.presets import PresetError, build, card_of, load_weights


@pytest.mark.skipif("forkserver" not in multiprocessing.get_all_start_methods(), reason="this system can't fork")
def test_three_kills():
    from liveavatar_nb.eval.kills import bench_kills
    count = bench_kills(3, 4., each=3)
    assert count["kills"] == 3 and count["problems"] == [] and count["films_wrong"] == []
    assert count["films_equal"] == count["films"] >= 1 and sum(count["by_signal"].values()) == 3


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIVEAVATAR_CONFIG", "set by the lab")
        yield Lab(tmp_path_factory.mktemp("lab"))


def test_every_answer_is_a_result_or_one_line(lab):
    rows, seen = [], set()
    for number in range(25 * len(KINDS)):
        kind, function = lab.case(number, seed=5)
        rows.append((kind, *attempt_case(function), 0.))
        seen.add(rows[-1][:2])
    assert [r for r in rows if r[2]] == []
    assert {kind for kind, outcome in seen if outcome == "refused"} == set(KINDS)
    assert tally(rows, [], 5)["kinds"]["image"]["cases"] == 25


def test_the_judge_itself():
    def happened(): np.zeros(3).reshape(2)
    def not_for_users(): {}["x"]
    assert attempt_case(happened)[0] == attempt_case(not_for_users)[0] == "unclear"
    assert attempt_case(lambda: None)[:2] == ("accepted", None)
    with pytest.raises(PresetError) as e: load_weights("nowhere at all")
    assert unclear(e.value) is None
    assert judge(("text", "accepted", None, 9., 0.)) and judge(("text", "accepted", None, 0., 2000.))
    assert judge(("text", "accepted", None, 1., 10.)) is None


def test_bending_leaves_the_original():
    rng, value = np.random.default_rng(0), dict(a=[1, dict(b=2)], c="x")
    bent = [json.dumps(bend_json(rng, value)) for _ in range(50)]
    assert value == dict(a=[1, dict(b=2)], c="x") and len(set(bent)) > 20


@pytest.mark.parametrize("change", [dict(res_blocks=2**20), dict(dim_mult=[1] * 100_000), dict(dim_mult=[1] * 900, res_blocks=900)])
def test_a_header_that_asks_for_too_much(tmp_path, change):
    "Each would keep a loader busy for hours that builds what it is told."
    config = vars(build("pico", "vae").config) | change
    save_file({}, tmp_path / "x.safetensors", metadata=dict(kind="vae", config=json.dumps(config)))
    with pytest.raises(PresetError, match="more than the 0 weights"): load_weights(tmp_path / "x.safetensors")


@pytest.mark.parametrize("card", [b"\xff\xfe{", b"[1]", b'{"sampler": 3}', b"[" * 100_000])
def test_a_card_that_is_none(tmp_path, card):
    (tmp_path / "x.safetensors").write_bytes(b"x")
    (tmp_path / "x.json").write_bytes(card)
    with pytest.raises(PresetError, match="no weights card"): card_of(tmp_path / "x.safetensors")


@pytest.mark.parametrize("says", [3, [1], "x", dict(consent=7), dict(consent=dict(by="\x1b[2J\nwhole: all is well")), dict(generator="a\nwhole: b")])
def test_a_good_signature_with_bad_manners(lab, says):
    "Whoever signs may write what they like into the manifest; the report stays readable and says no false line."
    from liveavatar_nb.eval.fuzz import small_film
    from liveavatar_nb.stream.provenance import say, verify
    path = lab.folder / "rude.mp4"
    small_film(path, says)
    lines = say(verify(path)).split("\n")
    assert lines[0].startswith("whole: every frame") and sum(line.startswith("whole") for line in lines) == 1
    assert "\x1b" not in "".join(lines)
