import pytest
import torch
from torch import Tensor

from bayesify.core.errors import OptionError, ShapeError
from bayesify.core.types import Named
from bayesify.distributions.kl import kl_divergence
from bayesify.distributions.kronecker_normal import FIELDS, KroneckerNormal
from bayesify.distributions.priors import NormalPrior

TAU = 0.7


def symmetric(size: int) -> Tensor:
    root = torch.randn(size, size, dtype=torch.float64)
    return root @ root.T


def kronecker() -> tuple[KroneckerNormal, dict[str, Tensor]]:
    """A convolution's weight and bias, and their covariances by the Kronecker product itself."""
    rows, patches, alone = symmetric(2), symmetric(12), symmetric(2)
    fields: dict[str, Named] = {field: {} for field in FIELDS}
    fields["loc"] = {
        "weight": torch.randn(2, 3, 2, 2, dtype=torch.float64),
        "bias": torch.randn(2, dtype=torch.float64),
    }
    for name, side, matrix in (
        ("weight", "left", rows),
        ("weight", "right", patches),
        ("bias", "left", alone),
    ):
        values, vectors = torch.linalg.eigh(matrix)
        fields[side][name], fields[f"{side}_values"][name] = vectors, values.clamp_min(0)
    fields["prior"] = dict.fromkeys(fields["loc"], torch.tensor(TAU, dtype=torch.float64))
    blocks = {"weight": torch.kron(rows, patches), "bias": alone}
    return KroneckerNormal(**fields), {
        name: torch.linalg.inv(each + TAU * torch.eye(len(each), dtype=torch.float64))
        for name, each in blocks.items()
    }


def flat(named: Named) -> Tensor:
    return torch.cat([each.flatten() for each in named.values()]).detach()


def test_samples_are_a_root_of_the_covariance_times_noise():
    """n samples of n unit vectors of noise give the root itself; its square is exact."""
    q, covariance = kronecker()
    sizes = {"weight": 24, "bias": 2}
    noise = torch.eye(26, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        home = "bayesify.distributions.kronecker_normal.standard_normal_rows"
        patch.setattr(home, lambda n, size, like, generator: noise)
        draws = q.sample(26)
    start = 0
    for name, size in sizes.items():
        root = (draws[name] - q.point()[name]).detach().flatten(1)
        other = torch.cat([root[:start], root[start + size :]])
        assert (other == 0).all()  # tensors are independent
        torch.testing.assert_close(root.T @ root, covariance[name], rtol=1e-9, atol=1e-12)
        start += size


def test_scales_are_the_diagonal_of_the_covariance():
    q, covariance = kronecker()
    want = torch.cat([each.diagonal().sqrt() for each in covariance.values()])
    torch.testing.assert_close(flat(q.scale), want)


def test_the_log_determinant_is_that_of_the_precision():
    q, covariance = kronecker()
    want = -sum(each.logdet() for each in covariance.values())
    torch.testing.assert_close(q.log_determinant().detach(), want)


def test_the_divergence_is_that_of_torch():
    q, covariance = kronecker()
    joint = torch.block_diag(*covariance.values())
    wide = torch.cat([torch.full((24,), 0.25), torch.full((2,), 4.0)]).double().diag()
    normal = torch.distributions.MultivariateNormal
    want = torch.distributions.kl_divergence(
        normal(flat(q.point()), joint), normal(torch.zeros(26).double(), wide)
    )
    got = kl_divergence(q, NormalPrior({"weight": 0.5, "bias": 2.0}))
    torch.testing.assert_close(got.detach(), want)


def test_scaling_multiplies_the_noise_and_nothing_else():
    q, _ = kronecker()
    q.prior.requires_grad_(False)
    wide = q.scaled(3.0)
    torch.testing.assert_close(flat(wide.scale), 3 * flat(q.scale))
    assert torch.equal(wide.point()["weight"], q.point()["weight"])
    assert not any(each.requires_grad for each in wide.prior.parameters())
    assert all(each.requires_grad for each in wide.left.parameters())
    with pytest.raises(OptionError, match="factor=inf"):
        q.scaled(float("inf"))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"prior": {}}, ShapeError, "prior: expected the names"),
        ({"left": {"w": torch.eye(3)}}, ShapeError, r"left of 'w': expected the shape \(2, 2\)"),
        ({"right": {}}, ShapeError, "right and right_values: expected the same names"),
        ({"right_values": {"w": torch.ones(2)}}, ShapeError, "eigenvalues for 6 numbers, got 2"),
        ({"left_values": {"w": -torch.ones(2)}}, OptionError, "eigenvalues of 'w'"),
        ({"prior": {"w": torch.zeros(())}}, OptionError, "prior of 'w'"),
    ],
)
def test_what_does_not_belong_together_is_refused(changes, error, message):
    given = {
        "loc": {"w": torch.zeros(2, 3)},
        "left": {"w": torch.eye(2)},
        "left_values": {"w": torch.ones(2)},
        "right": {"w": torch.eye(3)},
        "right_values": {"w": torch.ones(3)},
        "prior": {"w": torch.tensor(1.0)},
    }
    KroneckerNormal(**given)
    with pytest.raises(error, match=message):
        KroneckerNormal(**(given | changes))
