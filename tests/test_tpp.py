"Laws that no pipeline schedule may break, and the planner's promises (42_stream.tpp to 42e_stream.planner)."
import pytest
from hypothesis import given, settings, strategies as st
from statistics import median

from liveavatar_nb.stream.cost import DEVICES
from liveavatar_nb.stream.planner import PlanError, plan, plan_command
from liveavatar_nb.stream.reproduce import closed_form, reproduce_paper
from liveavatar_nb.stream.simulator import simulate
from liveavatar_nb.stream.tpp import BLOCK_FRAMES, BLOCK_SECONDS, Link, Placement, SinkPlan, StageTimes, jobs, placements

quick = settings(max_examples=60, deadline=None)
seconds = st.floats(.01, 2.).map(lambda x: round(x, 4))


@st.composite
def factories(draw, max_steps=5):
    n = draw(st.integers(1, max_steps))
    times = StageTimes(tuple(draw(seconds) for _ in range(n)), draw(seconds), draw(seconds))
    placement = draw(st.sampled_from([p for r in range(1, n + 2) for p in placements(n, r)]))
    return times, placement, [draw(st.sampled_from([.5, 1., 2.])) for _ in range(placement.n_ranks)]


@st.composite
def sinks(draw, n_blocks):
    if draw(st.booleans()): return SinkPlan()
    at = draw(st.integers(1, n_blocks))
    return SinkPlan(at, draw(st.integers(0, at - 1)), draw(st.booleans()), 4000, 100)


@st.composite
def runs(draw):
    times, placement, speeds = draw(factories())
    n = draw(st.integers(1, 20))
    sink, live, buffers = draw(sinks(n)), draw(st.booleans()), draw(st.integers(0, 3))
    link = Link(draw(st.sampled_from([1e3, 1e6, float("inf")])), draw(st.sampled_from([0., .01, .3])))
    return simulate(times, placement, n, link, buffers, speeds, sink, live, latent_bytes=100), times, speeds, sink, live


@quick
@given(runs())
def test_laws(case):
    run, times, speeds, sink, live = case
    p, slowest = run.placement, max(run.placement.work(times, speeds))
    assert run.fps <= BLOCK_FRAMES / slowest * (1 + 1e-9)
    for d in range(p.n_ranks):
        rows = run.compute(d)
        assert all(b.start >= a.end - 1e-9 for a, b in zip(rows, rows[1:])), "one thing at a time"
        busy = sum(r.end - r.start for r in rows)
        assert busy + run.idle[d] * run.makespan == pytest.approx(run.makespan, abs=1e-9)
        seen = [(r.block, r.step) for r in rows if r.kind == "step"]
        assert seen == [(b, s) for b in range(run.n_blocks) for s in p.stages[d]], "every step once, in order"
    decodes = [r for r in run.compute() if r.kind == "decode"]
    assert [r.block for r in decodes] == list(range(run.n_blocks)) and {r.device for r in decodes} == {p.decode}
    ends = {(r.block, r.step): r.end for r in run.rows if r.kind == "step"}
    for r in run.rows:
        if r.kind == "step" and r.step: assert r.start >= ends[r.block, r.step - 1] - 1e-9
        if r.kind == "step" and not r.step and live: assert r.start >= (r.block + 1) * BLOCK_SECONDS - 1e-9
        if r.kind == "decode": assert r.start >= ends[r.block, times.n_steps - 1] - 1e-9
        if sink.at is not None and r.kind == "step" and r.block >= sink.at and run.n_blocks > sink.at:
            assert r.start >= ends[sink.after, times.n_steps - 1] - 1e-9, "the new sink must exist"
    assert sum(v for (what, *_), v in run.bytes.items() if what == "latent") == 100 * run.n_blocks * (p.n_ranks - 1)


@quick
@given(factories(), st.integers(1, 40), st.integers(1, 3), st.floats(0, 1))
def test_closed_form_is_the_simulation(factory, n, buffers, share):
    times, placement, speeds = factory
    link = Link(latency=share * max(placement.work(times, speeds)))
    run, form = simulate(times, placement, n, link, buffers, speeds), closed_form(times, placement, n, link, buffers, speeds)
    # the slowest prefill bounds the start; with equal prefills the formula is exact
    exact = len({times.sink / speeds[r] for r in placement.denoisers}) == 1
    if exact:
        assert run.makespan == pytest.approx(form.makespan, abs=1e-9)
        assert run.first_frame_s == pytest.approx(form.first_frame_s, abs=1e-9)
        assert run.idle == pytest.approx(form.idle, abs=1e-9)
    else: assert run.makespan <= form.makespan + 1e-9


@quick
@given(st.integers(1, 6), seconds, st.integers(60, 90), st.integers(0, 2), st.integers(1, 7))
def test_uniform_stages(steps, step, n, buffers, ranks):
    times = StageTimes.uniform(steps, step, step)
    placement = Placement.spread(min(ranks, steps + 1), steps, 1.)
    run, form = simulate(times, placement, n, buffers=buffers), closed_form(times, placement, n, buffers=buffers)
    assert run.fps == pytest.approx(form.fps, abs=1e-9) and run.makespan == pytest.approx(form.makespan, abs=1e-9)
    assert median(run.latency_s[n // 2:]) == pytest.approx(form.latency_s, abs=1e-9)


def test_live_latency_is_the_plain_sum():
    times = StageTimes.uniform(4, .2, .1, .05)
    run = simulate(times, n_blocks=40, live=True, link=Link(latency=.01))
    assert run.latency_s[-1] == pytest.approx(closed_form(times, run.placement, 40, Link(latency=.01), live=True).latency_s, abs=1e-9)


@pytest.mark.parametrize("share", [False, True])
def test_refresh_without_draining_costs_one_prefill(share):
    times = StageTimes.uniform(4, .25, .2, .15)
    plain, drained = simulate(times, n_blocks=20), simulate(times, n_blocks=20, sink=SinkPlan(at=1, share=share))
    rolling = simulate(times, n_blocks=20, sink=SinkPlan(at=6, share=share))
    assert rolling.makespan - plain.makespan == pytest.approx(.15, abs=1e-9)
    assert drained.makespan - plain.makespan == pytest.approx(3 * .25 + .15, abs=1e-9)


def test_paper():
    for row in reproduce_paper(): assert max(abs(row["fps_error"]), abs(row["ttff_error"])) < .05, row


def test_jobs_are_endless_and_agree_with_the_finite_list():
    p, sink = Placement.parse("01|23D"), SinkPlan(at=6, share=True)
    for r in range(2):
        finite, endless = list(jobs(p, r, 10, sink)), jobs(p, r, None, sink)
        assert [next(endless) for _ in finite] == finite


names = st.sampled_from([d for d in DEVICES.values() if d.bf16])


@settings(max_examples=25, deadline=None)
@given(st.lists(names, min_size=1, max_size=5), names, st.sampled_from(["bf16", "fp8", "auto"]), st.sampled_from(["throughput", "latency"]))
def test_more_devices_never_hurt(devices, extra, precision, goal):
    def answer(ds):
        try: return plan(ds, precision=precision, goal=goal)
        except PlanError: return None
    before, after = answer(devices), answer(devices + [extra])
    if before is None: return
    assert after is not None
    assert all(g <= d.gb for g, d in zip(after.gb, after.devices))
    if goal == "throughput": assert after.fps >= before.fps - 1e-9
    elif before.real_time: assert after.real_time and after.latency_s <= before.latency_s + 1e-6
    else: assert after.fps >= before.fps - 1e-9


def test_forecast_is_what_the_simulation_says():
    p = plan("3xH100+2xH200", step_s=.3, decode_s=.2)
    run = simulate(p.times, p.placement, 64)
    assert run.fps == pytest.approx(p.fps, abs=1e-9)


@pytest.mark.parametrize("kwargs, words", [
    (dict(devices="4xfoo"), "unknown"), (dict(devices=""), "1 to 16"), (dict(devices="17xH100"), "1 to 16"), (dict(preset="x"), "unknown"),
    (dict(goal="x"), "throughput or latency"), (dict(precision="int4"), "bf16, fp8 or int8"), (dict(steps=0), "at least one"),
    (dict(size="big"), "720x400"), (dict(size="0x0"), "multiples of 16"), (dict(steps=99), "at most 16"), (dict(step_ms=1.), "neither"), (dict(devices="1xRTX3090"), "doesn't fit"), (dict(devices="5xcpu"), "doesn't fit"), (dict(devices="5xcpu", preset="nano"), "measure a step")])
def test_bad_questions_get_one_line(kwargs, words):
    with pytest.raises(ValueError, match=words) as e: plan_command(**kwargs)
    assert "\n" not in str(e.value)


def test_command_prints_the_nearest_plan(capsys):
    result = plan_command("2xRTX4090")
    text = capsys.readouterr().out
    assert "doesn't fit" in text and "nearest plan" in text and result.placement.n_ranks == 2
    assert plan_command("4xA100-80G").placement == Placement.parse("0|1|2|3D")


def test_forecasts_beside_public_measurements():
    "The planner and the simulator against every published speed of chapter 42f; what was fitted is called so."
    from liveavatar_nb.stream.forecast import bench_forecast, card_fps, paper_claims, reports, training_check
    result = bench_forecast(say=lambda line: None)
    assert all(result["holds"].values()), result["holds"]
    claims = {c.what: c for c in paper_claims() + reports()}
    assert len(claims) == len(paper_claims() + reports()) - 1 and claims["3 steps, 4 H800, FPS"].kind == "predicted"   # the H20 stands twice
    assert claims["5 H20, FPS"].kind == "fitted" and card_fps("B200", "01|2D", "bf16") > 40
    assert training_check().low == pytest.approx(667 / 8 * 3600 / 4000, abs=.1)


def test_promises_are_answered_with_their_conditions():
    from liveavatar_nb.stream.forecast import full_hd, largest_size, layer_split, offloaded, train_forecast, train_gb
    card = offloaded("RTX5090")
    assert card["fits"] and card["gb"] < 32 and card["copy_s"] < card["step_s"] and offloaded("RTX5090", bus_gbs=5)["fps"] < card["fps"]
    assert not layer_split("RTX4090")["fits"] and layer_split("RTX4090", cache_bytes=1)["fits"]
    small = largest_size("RTX4090", 15.)
    assert small["fps"] >= 15 and small["size"] < (720, 400) and largest_size("RTX3090", 200.) is None
    assert full_hd()["fps"] < 5 < 25 < full_hd()["decode_fps"] and full_hd(tiles=1)["decode_fps"] < 25
    eight = train_forecast()
    assert eight["stage2_hours"] < 72 and train_forecast(hours=1000)["stage1_steps_that_fit"]["hopeful"] > eight["stage1_steps_that_fit"]["hopeful"]
    assert train_gb(8)["total"] < 80 < train_gb(1)["total"]


@pytest.mark.parametrize("preset", ["pico", "nano"])
def test_memory_model_is_the_bytes_of_a_full_cache(preset):
    import torch
    from liveavatar_nb.model.cache import History, LayerKV
    from liveavatar_nb.model.presets import PRESETS
    from liveavatar_nb.stream.cost import get_arch, model_cost
    arch, c = get_arch(preset), PRESETS[preset].dit
    h, w, cost = arch.height // 16, arch.width // 16, model_cost(arch)
    cache = History(h, w, arch.window_frames - 3)
    kv = lambda n: [LayerKV(*torch.zeros(2, 1, n, c.heads, c.dim // c.heads)) for _ in range(c.layers)]
    cache.set_sink(kv(h * w), torch.zeros(h * w, 3, dtype=torch.float64))
    for _ in range(6): cache.append(kv(3 * h * w))
    counted = sum(t.nbytes for layer in cache.buffers for t in layer) + sum(k.nbytes for k in cache.sink_keys)
    assert counted == round(2 * (cost.window_bytes + 1.5 * cost.sink_bytes))   # float32 here, 16 bits in the formula


def test_a_plan_says_what_sharing_devices_costs():
    notes = " ".join(plan("3xH200", precision="bf16").notes)
    assert "up to 2 of 4 steps share a device" in notes and "11.1 GB more" in notes
    assert not any("share a device" in n for n in plan("5xH200").notes)
