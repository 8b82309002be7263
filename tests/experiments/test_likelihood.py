import pytest

from bayesify.core.errors import OptionError
from bayesify.experiments.likelihood import likelihood_of, typed
from bayesify.likelihoods import LIKELIHOOD_OF_TASK, LIKELIHOODS, Gaussian


@pytest.mark.parametrize("task", LIKELIHOOD_OF_TASK)
def test_without_options_it_is_the_usual_one(task):
    assert typed(task, {}) == {}
    made, usual = likelihood_of(task, {}), LIKELIHOODS[LIKELIHOOD_OF_TASK[task]]()
    assert type(made) is type(usual)
    assert made.options() == usual.options()


def test_options_are_arguments_of_its_constructor():
    made = likelihood_of("regression", typed("regression", {"scale": "output"}))
    assert isinstance(made, Gaussian)
    assert made.kind == "output"
    assert typed("classification", {"logit_temperature": "2"}) == {"logit_temperature": 2.0}


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("regression", {"scal": 1}, "gaussian likelihood has no option 'scal'.*mean 'scale'"),
        ("regression", {"scale": -1}, "expected a number above 0"),
        ("regression", {"scale": True}, "expected scale to be a number or text, got True"),
        ("classification", {"logit_temperature": "hot"}, "logit_temperature to be a number"),
        ("multilabel", {"scale": 1}, "bernoulli likelihood has no option 'scale': it has none"),
    ],
)
def test_mistakes_are_named(task, options, message):
    with pytest.raises(OptionError, match=message):
        typed(task, options)
