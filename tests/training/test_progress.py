import io

import torch
from rich.console import Console
from torch import nn

from bayesify import MAP, STF, ProgressBar, fit
from bayesify.training.progress import BatchCounter

DATA = torch.randn(32, 4), torch.arange(32) % 2


def run(*, terminal: bool) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=100)
    bar = ProgressBar("digits", console)
    fit(nn.Linear(4, 2), DATA, STF(pretrain=MAP(epochs=2), epochs=1), callbacks=[bar])
    return stream.getvalue()


def test_a_terminal_sees_each_phase_and_its_loss():
    shown = run(terminal=True)
    assert "digits: MAP" in shown
    assert "digits: STF" in shown
    assert "2/2" in shown


def test_a_file_gets_nothing():
    assert run(terminal=False) == ""


def test_it_draws_on_the_error_stream_and_may_end_before_it_began(capsys):
    bar = ProgressBar()
    bar.on_phase_end()
    bar.on_epoch_end({"loss": 1.0})
    assert bar.console.stderr
    assert capsys.readouterr().out == ""


def counted(*, terminal: bool) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=100)
    counter = BatchCounter("digits", console)
    for _ in range(3):
        counter(500)
    counter.close()
    counter.close()  # twice does no harm
    return stream.getvalue()


def test_a_terminal_sees_how_much_was_judged():
    assert "digits: 1,500 inputs judged" in counted(terminal=True)


def test_a_file_does_not_see_it():
    assert counted(terminal=False) == ""
