import pytest
import torch

from bayesify.core.errors import BayesifyError, NotPositiveDefiniteError
from bayesify.numerics.linalg import JITTER, cholesky, cholesky_or_flag, log_determinant


def positive_definite(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """(*shape, n) -> matrices (*shape, n, n)."""
    root = torch.randn(*shape, shape[-1], dtype=dtype)
    return root @ root.mT + torch.eye(shape[-1], dtype=dtype)


def with_eigenvalues(*values: float) -> torch.Tensor:
    axes = torch.linalg.qr(torch.randn(len(values), len(values), dtype=torch.float64)).Q
    return axes @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ axes.T


@pytest.mark.parametrize("members", [(), (4,), (2, 3)])
def test_the_factor_times_its_transpose_is_the_matrix(members):
    matrix = positive_definite(*members, 5)
    lower = cholesky(matrix, name="a")
    torch.testing.assert_close(lower @ lower.mT, matrix, rtol=1e-12, atol=1e-12)
    assert torch.equal(lower, lower.tril())
    assert (lower.diagonal(dim1=-2, dim2=-1) > 0).all()


def test_members_are_factored_as_if_alone():
    matrix = positive_definite(2, 3, 5)
    matrix[1, 0] = torch.diag(torch.tensor([1.0, 1.0, 1.0, 1.0, -JITTER / 10]))
    want = [cholesky(each, name="a") for each in matrix.flatten(0, 1)]
    torch.testing.assert_close(cholesky(matrix, name="a").flatten(0, 1), torch.stack(want))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_factor_has_the_type_of_the_matrix(dtype):
    lower, ok = cholesky_or_flag(torch.tensor([[4.0, 2.0], [2.0, 5.0]], dtype=dtype))
    assert torch.equal(lower, torch.tensor([[2.0, 0.0], [1.0, 2.0]], dtype=dtype))
    assert (ok.dtype, ok.shape) == (torch.bool, ())


def test_one_jitter_of_the_documented_size_mends_a_singular_matrix():
    matrix = torch.diag(torch.tensor([3.0, 5.0, 0.0, -0.0], dtype=torch.float64))
    lower = cholesky(matrix, name="a")
    want = matrix + JITTER * 2.0 * torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(lower @ lower.T, want, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize(("smallest", "mended"), [(-0.5 * JITTER, True), (-2 * JITTER, False)])
def test_the_jitter_is_no_larger_than_documented(smallest, mended):
    _, ok = cholesky_or_flag(with_eigenvalues(1.0, 1.0 - smallest, smallest + 1, smallest))
    assert bool(ok) is mended  # the mean diagonal is (3 + smallest) / 4


def test_the_jitter_grows_with_the_matrix():
    matrix = with_eigenvalues(1.0, 2.0, -0.1 * JITTER)
    assert cholesky_or_flag(1e8 * matrix)[1]
    assert cholesky_or_flag(1e-8 * matrix)[1]


def test_only_the_failing_member_is_jittered():
    good, singular = positive_definite(3), torch.ones(3, 3, dtype=torch.float64)
    lower = cholesky(torch.stack([good, singular]), name="a")
    assert torch.equal(lower[0], torch.linalg.cholesky(good))
    want = singular + JITTER * torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(lower[1] @ lower[1].T, want, rtol=1e-14, atol=1e-14)


def test_the_second_try_reads_both_triangles():
    matrix = torch.tensor([[1.0, 0.6], [1.2, 1.0]], dtype=torch.float64)  # lower one: indefinite
    lower = cholesky(matrix, name="a")
    want = torch.tensor([[1.0, 0.9], [0.9, 1.0]], dtype=torch.float64)
    want += JITTER * torch.eye(2, dtype=torch.float64)
    torch.testing.assert_close(lower @ lower.T, want, rtol=1e-14, atol=1e-14)


def test_a_singular_gram_matrix_in_single_precision_is_mended():
    features = torch.randn(8, 20, 60).relu()  # 40 null directions, a large first eigenvalue
    gram = features.mT @ features
    assert (torch.linalg.cholesky_ex(gram).info > 0).all()
    lower = cholesky(gram, name="a")
    assert (lower @ lower.mT - gram).abs().max() < 1e-4 * gram.abs().max()


def test_an_indefinite_matrix_is_named_with_its_smallest_eigenvalue():
    matrix = with_eigenvalues(2.0, 1.0, -3.25)
    message = r"precision of 'fc1': expected .* smallest eigenvalue -3\.25, .* raise the prior"
    with pytest.raises(NotPositiveDefiniteError, match=message) as caught:
        cholesky(matrix, name="precision of 'fc1'")
    assert isinstance(caught.value, BayesifyError)
    assert isinstance(caught.value, ArithmeticError)


def test_the_eigenvalue_is_that_of_the_first_member_that_failed():
    matrix = torch.eye(2).expand(4, 2, 2) * torch.tensor([1.0, 2.0, -3.0, -4.0]).view(4, 1, 1)
    message = r"^a, member 2 of 4 \(from 0\): .* smallest eigenvalue -3,"
    with pytest.raises(NotPositiveDefiniteError, match=message):
        cholesky(matrix, name="a")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [(0, 0), (2, 1), (1, 2)])
def test_entries_that_are_not_finite_are_said_instead_of_an_eigenvalue(value, place):
    matrix = positive_definite(3)
    matrix[place] = value
    message = "a: expected .* with 1 of 9 entries NaN or infinite; check that the inputs"
    with pytest.raises(NotPositiveDefiniteError, match=message) as caught:
        cholesky(matrix, name="a")
    assert "eigenvalue" not in str(caught.value)


def test_a_matrix_of_zeros_has_no_factor():
    with pytest.raises(NotPositiveDefiniteError, match="smallest eigenvalue 0,"):
        cholesky(torch.zeros(3, 3), name="a")


def test_the_flag_is_false_and_the_factor_the_identity_where_there_is_none():
    good, identity = positive_definite(3), torch.eye(3, dtype=torch.float64)
    matrix = torch.stack([good, -good, good * float("nan"), good * 4, identity * float("inf")])
    lower, ok = cholesky_or_flag(matrix)
    assert ok.tolist() == [True, False, False, True, False]
    assert torch.equal(lower[0], torch.linalg.cholesky(good))
    assert torch.equal(lower[3], torch.linalg.cholesky(good * 4))
    assert torch.equal(lower[[1, 2, 4]], identity.expand(3, 3, 3))


def test_the_matrix_is_left_as_it_was():
    matrix = torch.stack([positive_definite(3), torch.ones(3, 3, dtype=torch.float64)])
    before = matrix.clone()
    cholesky_or_flag(matrix)
    assert torch.equal(matrix, before)


def test_the_log_determinant_is_that_of_the_matrix():
    matrix = positive_definite(2, 3, 5)
    got = log_determinant(cholesky(matrix, name="a"))
    torch.testing.assert_close(got, torch.logdet(matrix), rtol=1e-12, atol=1e-12)
