"""Distribution matching: what the notebook 34 claims, over open-ended inputs."""
import pytest
import torch
from hypothesis import given, settings, strategies as st

from liveavatar_nb.train.dmd import critic_loss, dmd_gradient, dmd_loss, sample_sigma
from liveavatar_nb.train.gaussian import gaussian_gradient, gaussian_optimum

torch.set_num_threads(1)
SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=5).map(tuple)
HOW = st.sampled_from(["batch", "sample", None])
quick = settings(max_examples=40, deadline=None)


def three(shape, seed, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=g).to(dtype) for _ in range(3)]


def denoise(x, sigma, mean, var):
    a = 1 - sigma
    return mean + a * var / (a * a * var + sigma ** 2) * (x - a * mean)


@quick
@given(SHAPES, st.integers(0, 99), HOW, st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]))
def test_shape_dtype_and_no_graph(shape, seed, how, dtype):
    x, real, fake = three(shape, seed, dtype)
    g = dmd_gradient(x.requires_grad_(), real, fake, how)
    assert g.shape == x.shape and g.dtype == torch.promote_types(dtype, torch.float32) and not g.requires_grad and g.isfinite().all()


@quick
@given(SHAPES, st.integers(0, 99), HOW)
def test_stop_gradient(shape, seed, how):
    """d loss / d x is the given gradient over the number of elements, whatever x, real and fake depend on."""
    x, real, fake = three(shape, seed)
    x.requires_grad_()
    g = dmd_gradient(x, 2 * x + real, 3 * x + fake, how)
    dmd_loss(x, g.requires_grad_()).backward()
    torch.testing.assert_close(x.grad * x.numel(), g.detach(), atol=1e-5, rtol=1e-4)
    assert g.grad is None


@quick
@given(SHAPES, st.integers(0, 99), st.floats(.01, 1e3), st.sampled_from(["batch", "sample"]))
def test_normaliser_forgets_the_units(shape, seed, unit, how):
    x, real, fake = (a.double() for a in three(shape, seed))
    torch.testing.assert_close(dmd_gradient(unit * x, unit * real, unit * fake, how), dmd_gradient(x, real, fake, how))
    torch.testing.assert_close(dmd_gradient(unit * x, unit * real, unit * fake, None), unit * dmd_gradient(x, real, fake, None))


@quick
@given(st.integers(2, 5), st.integers(0, 99))
def test_sample_normaliser_looks_at_one_sample_only(n, seed):
    x, real, fake = three((n, 6, 2), seed)
    whole = dmd_gradient(x, real, fake, "sample")
    torch.testing.assert_close(whole[:1], dmd_gradient(x[:1], real[:1], fake[:1], "sample"))
    assert not torch.allclose(dmd_gradient(x, real, fake, "batch")[:1], dmd_gradient(x[:1], real[:1], fake[:1], "batch"))


def mean_gradient(A, B, w, seed, n=60_000, s0=1., tau=1.):
    """Mean and standard error of (dL/dA, dL/dB) of x = A c + B z with exact scores."""
    g = torch.Generator().manual_seed(seed)
    c, z, eps = tau * torch.randn(n, generator=g), torch.randn(n, generator=g), torch.randn(n, generator=g)
    s = sample_sigma(n, generator=g)
    x = A * c + B * z
    xs = (1 - s) * x + s * eps
    free, cond = denoise(xs, s, 0., s0 ** 2 + tau ** 2), denoise(xs, s, c, s0 ** 2)
    d = dmd_gradient(x, free + w * (cond - free), denoise(xs, s, A * c, B ** 2), None)
    both = torch.stack([d * c, d * z])
    return both.mean(1), both.std(1) / n ** .5


@settings(max_examples=15, deadline=None)
@given(st.floats(.3, 2.), st.floats(.3, 2.), st.integers(0, 999))
def test_truth_is_a_fixed_point(s0, tau, seed):
    mean, error = mean_gradient(1., s0, 1., seed, s0=s0, tau=tau)
    assert (mean.abs() < 5 * error + 1e-6).all()
    assert max(map(abs, gaussian_gradient(1., s0, 1., s0, tau))) < 1e-9


@settings(max_examples=15, deadline=None)
@given(st.floats(.2, .7) | st.floats(1.4, 3.), st.integers(0, 999))
def test_gradient_points_back_to_the_truth(factor, seed):
    """Too wide: descent makes it narrower; too narrow: wider; the same for obedience."""
    mean, error = mean_gradient(1., factor, 1., seed)
    assert (mean[1] > 3 * error[1]) if factor > 1 else (mean[1] < -3 * error[1])
    mean, error = mean_gradient(factor, 1., 1., seed)
    assert (mean[0] > 3 * error[0]) if factor > 1 else (mean[0] < -3 * error[0])


@settings(max_examples=15, deadline=None)
@given(st.floats(0, 2), st.floats(.2, 2), st.floats(1, 3), st.integers(0, 999))
def test_monte_carlo_agrees_with_the_formula(A, B, w, seed):
    mean, error = mean_gradient(A, B, w, seed)
    assert ((mean - torch.tensor(gaussian_gradient(A, B, w))).abs() < 5 * error + 1e-4).all()


def test_guidance_moves_the_optimum():
    """Reference values of an independent computation with shift 5 (w 2 and 4)."""
    for w, want in ((1., (1., 1.)), (2., (1.876, .657)), (4., (3.337, .141))):
        got = gaussian_optimum(w, shift=5.)
        assert got == pytest.approx(want, abs=2e-3)
        assert max(map(abs, gaussian_gradient(*got, w, shift=5.))) < 1e-5


@quick
@given(st.integers(1, 64), st.floats(.2, 8), st.booleans(), st.integers(0, 99))
def test_noise_levels_stay_in_range(n, shift, even, seed):
    s = sample_sigma(n, shift, .1, .9, torch.Generator().manual_seed(seed), even=even)
    assert s.shape == (n,) and s.min() >= .1 - 1e-6 and s.max() <= .9 + 1e-6
    assert torch.equal(s, sample_sigma(n, shift, .1, .9, torch.Generator().manual_seed(seed), even=even))
    if even: assert (s.diff() >= 0).all()


@quick
@given(SHAPES, st.integers(0, 99))
def test_critic_never_moves_the_student(shape, seed):
    v, x, eps = three(shape, seed)
    critic_loss(v.requires_grad_(), x.requires_grad_(), eps).backward()
    assert x.grad is None and v.grad.abs().max() > 0
    assert critic_loss(eps - x.detach(), x, eps).item() == 0


@pytest.mark.parametrize("call, text", [
    (lambda: dmd_gradient(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 1)), "differ"),
    (lambda: dmd_gradient(*[torch.zeros(2)] * 3, "mean"), "unknown normaliser"),
    (lambda: sample_sigma(3, lo=.5, hi=.2), "lo"), (lambda: sample_sigma(3, 0.), "shift"), (lambda: gaussian_optimum(.5), "guidance")])
def test_bad_input_is_one_line(call, text):
    with pytest.raises(ValueError, match=text) as e: call()
    assert "\n" not in str(e.value)
