import pytest
import torch
from torch.distributions import MultivariateNormal
from torch.distributions import kl_divergence as torch_kl

from bayesify.numerics.matrix_normal import draw, kl_divergence, log_density

A, B = 4, 3


@pytest.fixture(autouse=True)
def _double() -> object:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def parameters(*members: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A mean and the lower factors of a row precision and of a column covariance."""
    factors = [
        torch.randn(*members, n, n).tril(-1) + torch.diag(torch.rand(n) + 0.5) for n in (A, B)
    ]
    return torch.randn(*members, A, B), *factors


def vec(w: torch.Tensor) -> torch.Tensor:
    return w.mT.flatten(-2)


def kron(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.kron(a.contiguous(), b.contiguous())  # torch refuses what `inv` returns


def dense(mean: torch.Tensor, row: torch.Tensor, column: torch.Tensor) -> MultivariateNormal:
    """The distribution of vec(W), by the convention cov = V kron P^-1."""
    covariance = kron(column @ column.T, torch.linalg.inv(row @ row.T))
    return MultivariateNormal(vec(mean), covariance)


def prior_of(mean, row, column) -> dict[str, torch.Tensor]:
    return {"prior_mean": mean, "prior_row_cholesky": row, "prior_column_cholesky": column}


def test_vec_stacks_columns():
    assert vec(torch.tensor([[1.0, 3.0], [2.0, 4.0]])).tolist() == [1.0, 2.0, 3.0, 4.0]


def test_the_linear_map_of_a_draw_has_the_covariance_of_the_convention():
    """Exactly: draws are linear in the noise, so its unit vectors give the whole map."""
    mean, row, column = parameters()
    units = torch.eye(A * B).reshape(A * B, A, B)
    root = vec(draw(mean, row, column, units) - mean)  # one row for each noise entry
    want = dense(mean, row, column).covariance_matrix
    torch.testing.assert_close(root.T @ root, want, rtol=1e-10, atol=1e-10)


def test_the_sample_mean_and_covariance_are_those_of_the_distribution(generator):
    mean, row, column = parameters()
    noise = torch.randn(200_000, A, B, generator=generator)
    w = vec(draw(mean, row, column, noise))
    want = dense(mean, row, column)
    spread = want.variance.sqrt()
    # Monte Carlo: standard errors are 1 / sqrt(200 000) = 0.0022 of the scale (mean), up to
    # sqrt(2) times that (covariance); five of them.
    assert ((w.mean(0) - vec(mean)) / spread).abs().max() < 0.0112
    error = (torch.cov(w.T) - want.covariance_matrix) / torch.outer(spread, spread)
    assert error.abs().max() < 0.0158


def test_no_noise_is_the_mean():
    mean, row, column = parameters(2)
    assert torch.equal(draw(mean, row, column, torch.zeros(2, A, B)), mean)


@pytest.mark.parametrize("samples", [(), (5,), (5, 2), (0,)])
def test_draws_of_members_are_those_of_a_loop(samples):
    mean, row, column = parameters(2, 3)
    noise = torch.randn(*samples, 2, 3, A, B)
    got = draw(mean, row, column, noise)
    assert got.shape == noise.shape
    for place in torch.cartesian_prod(torch.arange(2), torch.arange(3)).tolist():
        i, j = place
        for each, of in zip(
            got[..., i, j, :, :].reshape(-1, A, B),
            noise[..., i, j, :, :].reshape(-1, A, B),
            strict=True,
        ):
            want = mean[i, j] + torch.linalg.inv(row[i, j]).T @ of @ column[i, j].T
            torch.testing.assert_close(each, want, rtol=1e-10, atol=1e-10)


def test_members_can_share_one_column_factor():
    mean, row, column = parameters(2)
    noise = torch.randn(5, 2, A, B)
    want = draw(mean, row, column[:1].expand(2, B, B), noise)
    torch.testing.assert_close(draw(mean, row, column[0], noise), want)
    torch.testing.assert_close(
        log_density(noise, mean, row, column[0]),
        log_density(noise, mean, row, column[:1].expand(2, B, B)),
    )


def test_the_density_is_that_of_the_dense_normal():
    mean, row, column = parameters()
    w = torch.randn(7, A, B)
    want = dense(mean, row, column).log_prob(vec(w))
    got = log_density(w, mean, row, column)
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


def test_densities_of_members_are_those_of_a_loop():
    mean, row, column = parameters(3)
    w = torch.randn(5, 3, A, B)
    want = [log_density(w[:, m], mean[m], row[m], column[m]) for m in range(3)]
    torch.testing.assert_close(log_density(w, mean, row, column), torch.stack(want, dim=1))


def test_the_divergence_is_that_of_the_dense_normals():
    q, p = parameters(), parameters()
    want = torch_kl(dense(*q), dense(*p))
    torch.testing.assert_close(kl_divergence(*q, **prior_of(*p)), want, rtol=1e-11, atol=1e-11)


def test_the_divergence_is_the_mean_difference_of_log_densities(generator):
    q, p = parameters(), parameters()
    w = draw(*q, torch.randn(100_000, A, B, generator=generator))
    terms = log_density(w, *q) - log_density(w, *p)
    error = terms.std() / 100_000**0.5
    assert (terms.mean() - kl_divergence(*q, **prior_of(*p))).abs() < 4 * error


def test_the_divergence_from_itself_is_zero():
    q = parameters()
    assert kl_divergence(*q, **prior_of(*q)).abs() < 1e-12


def test_divergences_of_members_are_those_of_a_loop_and_may_share_a_prior():
    q, p = parameters(3), parameters()
    got = kl_divergence(*q, **prior_of(*p))
    want = [kl_divergence(*(each[m] for each in q), **prior_of(*p)) for m in range(3)]
    torch.testing.assert_close(got, torch.stack(want))


def test_single_precision_gives_single_precision():
    q, p = parameters(2), parameters(2)
    single_q, single_p = [tuple(each.float() for each in group) for group in (q, p)]
    noise = torch.randn(5, 2, A, B)
    pairs = [
        (draw(*single_q, noise.float()), draw(*q, noise)),
        (log_density(noise.float(), *single_q), log_density(noise, *q)),
        (kl_divergence(*single_q, **prior_of(*single_p)), kl_divergence(*q, **prior_of(*p))),
    ]
    for got, want in pairs:
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), want, rtol=1e-3, atol=1e-4)
