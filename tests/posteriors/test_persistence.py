import hashlib
import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

import bayesify
from bayesify import MAP, STF, MeanField, WeightPosterior, fit, load, save
from bayesify.core.errors import LoadError, OptionError, UnsupportedModelError
from bayesify.likelihoods import Categorical, Gaussian
from bayesify.posteriors.persistence import disk_bytes, read_manifest
from zoo import NETS

X = NETS["mlp"].inputs(5)


@pytest.fixture(scope="module")
def posterior() -> WeightPosterior:
    method = STF(pretrain=MAP(epochs=1), epochs=1)
    return fit(NETS["mlp"].model(), NETS["mlp"].data(), method)


@pytest.fixture
def saved(posterior, tmp_path) -> Path:
    return save(posterior, tmp_path / "saved")


def other() -> nn.Module:
    return NETS["mlp"].model(seed=9)


def test_it_comes_back_around_any_model_of_the_architecture(posterior, saved):
    again = load(saved, other())
    assert torch.equal(again.outputs(X), posterior.outputs(X))
    assert again.record == posterior.record


def test_loading_leaves_the_given_model_alone(saved):
    model = other().train()
    before = {name: each.clone() for name, each in model.state_dict().items()}
    load(saved, model)
    assert model.training
    assert all(each.requires_grad for each in model.parameters())
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())


def test_a_loaded_posterior_can_be_saved_again(saved, tmp_path):
    twin = save(load(saved, other()), tmp_path / "twin")
    for file in saved.iterdir():
        assert (twin / file.name).read_bytes() == file.read_bytes()


def test_nothing_is_pickled(posterior, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("pickle was used")

    for name in ("load", "loads", "dump", "dumps", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(torch, "save", refuse)
    folder = save(posterior, tmp_path / "saved")
    load(folder, other())
    assert {file.suffix for file in folder.iterdir()} == {".json", ".safetensors"}
    for file in folder.iterdir():
        content = file.read_bytes()
        assert not content.startswith((b"\x80", b"PK"))
        if file.suffix == ".safetensors":
            length = int.from_bytes(content[:8], "little")
            assert json.loads(content[8 : 8 + length])


def test_the_size_on_disk_is_that_of_the_files(posterior, saved):
    assert disk_bytes(saved) == sum(len(file.read_bytes()) for file in saved.iterdir())
    assert disk_bytes(saved) > 4 * posterior.stored_parameters


def test_without_base_the_same_weights_must_be_given(posterior, tmp_path):
    folder = save(posterior, tmp_path / "small", base=False)
    assert not (folder / "base.safetensors").exists()
    trained = other()
    trained.load_state_dict(posterior.model.state_dict())
    again = load(folder, trained)
    assert torch.equal(again.outputs(X), posterior.outputs(X))
    with pytest.raises(LoadError, match=r"holds no base weights .* are not the ones"):
        load(folder, other())


def test_an_existing_folder_is_kept_unless_asked(posterior, saved):
    with pytest.raises(OptionError, match=r"exists already; .* pass overwrite=True"):
        save(posterior, saved)
    save(posterior, saved, overwrite=True, notes={"round": 2})
    assert read_manifest(saved)["notes"] == {"round": 2}
    assert [each.name for each in saved.parent.iterdir()] == ["saved"]


def test_nothing_but_a_posterior_is_overwritten(posterior, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    (tmp_path / "manifest.json").write_text("{}")
    for precious in ("mine", "manifest.json", "."):
        with pytest.raises(OptionError, match="something else than a posterior"):
            save(posterior, tmp_path / precious, overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    save(posterior, tmp_path / "empty", overwrite=True)


def test_what_is_not_the_posteriors_stays_where_it_is_overwritten(posterior, saved):
    (saved / "thesis.txt").write_text("years of work")
    files = read_manifest(saved)["files"] | {"thesis.txt": {}, "../precious": {}}
    (saved / "manifest.json").write_text(json.dumps(read_manifest(saved) | {"files": files}))
    (saved.parent / "precious").write_text("kept")
    bytes_before = disk_bytes(saved)
    save(posterior, saved, overwrite=True, base=False)
    assert (saved / "thesis.txt").read_text() == "years of work"
    assert (saved.parent / "precious").read_text() == "kept"
    assert not (saved / "base.safetensors").exists()
    assert disk_bytes(saved) < bytes_before
    (saved / "manifest.json").write_text('{"mentions": "a bayesify posterior"}')
    with pytest.raises(OptionError, match="something else than a posterior"):
        save(posterior, saved, overwrite=True)


def test_a_save_that_was_killed_between_two_renames_is_recovered(posterior, saved):
    saved.rename(saved.parent / f".{saved.name}.0123abcd.old")
    assert torch.equal(load(saved, other()).outputs(X), posterior.outputs(X))
    saved.rename(saved.parent / f".{saved.name}.0123abcd.old")
    with pytest.raises(OptionError, match="exists already"):
        save(posterior, saved)


@pytest.mark.parametrize("crash", ["first file", "manifest", "rename"])
@pytest.mark.parametrize("existing", [True, False])
def test_a_crash_leaves_nothing_half_and_keeps_what_was(
    posterior, tmp_path, monkeypatch, crash, existing
):
    folder = tmp_path / "saved"
    if existing:
        save(posterior, folder, notes={"round": 1})
    real_rename = Path.rename

    def fail(*args, **kwargs):
        raise KeyboardInterrupt

    def fail_on_arrival(self, target):
        if Path(target) == folder and not self.name.endswith(".old"):
            raise OSError("disk gone")
        return real_rename(self, target)

    with monkeypatch.context() as patch:
        if crash == "first file":
            patch.setattr("bayesify.posteriors.persistence.save_file", fail)
        elif crash == "manifest":
            patch.setattr(Path, "write_text", fail)
        else:
            patch.setattr("bayesify.core.files._exchanged", lambda one, other: False)
            patch.setattr(Path, "rename", fail_on_arrival)
        with pytest.raises((KeyboardInterrupt, OSError)):
            save(posterior, folder, overwrite=True, notes={"round": 2})
    assert [each.name for each in tmp_path.iterdir()] == (["saved"] if existing else [])
    if existing:
        assert read_manifest(folder)["notes"] == {"round": 1}
        assert torch.equal(load(folder, other()).outputs(X), posterior.outputs(X))


def test_a_folder_that_cannot_be_written_is_told(posterior, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match="cannot write to"):
        save(posterior, tmp_path / "file" / "saved")


@pytest.mark.parametrize("name", ["q", "base"])
def test_truncated_changed_and_missing_files_are_refused(saved, name):
    file = saved / f"{name}.safetensors"
    whole = file.read_bytes()
    changed = bytearray(whole)
    changed[-3] ^= 1
    for damage in (whole[:-10], whole[:20], b"", bytes(changed), b"\x80\x04not ours"):
        file.write_bytes(damage)
        with pytest.raises(LoadError, match=f"{name}.safetensors does not match its checksum"):
            load(saved, other())
    file.unlink()
    with pytest.raises(LoadError, match=f"{name}.safetensors is missing"):
        load(saved, other())


def test_a_foreign_file_with_a_right_checksum_is_refused(saved):
    file = saved / "q.safetensors"
    file.write_bytes(b"no tensors in here")
    manifest = json.loads((saved / "manifest.json").read_text())
    manifest["files"]["q.safetensors"]["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    (saved / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(LoadError, match="is no safetensors file"):
        load(saved, other())


def without(manifest: dict, *keys: str) -> dict:
    return {name: each for name, each in manifest.items() if name not in keys}


DAMAGES = {
    "version 1": (lambda m: m | {"version": 1}, "has format version 1, this bayesify reads 5"),
    "no version": (lambda m: without(m, "version"), "has format version None"),
    "another format": (lambda m: m | {"format": "onnx"}, "is not the manifest of a bayesify"),
    "a list": (lambda m: [m], "is not the manifest of a bayesify"),
    "another q": (lambda m: m | {"distribution": "Flow"}, "damaged or changed .*'Flow'"),
    "no likelihood": (lambda m: without(m, "likelihood"), "damaged or changed .*'likelihood'"),
    "no files": (lambda m: without(m, "files"), "damaged or changed .*'files'"),
    "files of none": (lambda m: m | {"files": {}}, "whose `2.weight` is absent"),
    "another kind": (lambda m: m | {"posterior": "Flow"}, "damaged or changed .*'Flow'"),
    "another average": (lambda m: m | {"average": "mode"}, "damaged or changed .*'mode'"),
    "no tangent": (lambda m: without(m, "tangent"), "damaged or changed .*'tangent'"),
    "an odd record": (lambda m: m | {"record": {"a": 1}}, "damaged or changed"),
    "another base": (lambda m: m | {"base_sha256": "0"}, "not the ones it was fitted around"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_manifest_is_refused(saved, name):
    change, said = DAMAGES[name]
    file = saved / "manifest.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    with pytest.raises(LoadError, match=said):
        load(saved, other())


def test_a_folder_of_a_version_before_is_read(saved):
    file = saved / "manifest.json"
    manifest = without(json.loads(file.read_text()), "tangent", "average")
    before = without(manifest, "posterior") | {"version": 2, "dropout": False}
    for version in (before, manifest | {"version": 3}, manifest | {"version": 4}):
        file.write_text(json.dumps(version))
        again = load(saved, other())
        assert (type(again), again.tangent, again.average) == (WeightPosterior, False, "samples")


@pytest.mark.parametrize("version", [3, 4])
@pytest.mark.parametrize("average", ["samples", "probit"])
@pytest.mark.parametrize("tangent", [False, True])
def test_a_class_of_a_version_before_is_two_fields_now(saved, version, tangent, average):
    file, now = saved / "manifest.json", load(saved, other())
    name = "Linearised" * tangent + "Probit" * (average == "probit") or "Weight"
    manifest = without(json.loads(file.read_text()), "tangent", "average")
    manifest |= {"version": version, "posterior": f"{name}Posterior"}
    file.write_text(json.dumps(manifest))
    again, x = load(saved, other()), NETS["mlp"].inputs(5)
    assert (again.tangent, again.average) == (tangent, average)
    want = now.replaced(tangent=tangent, average=average)
    assert torch.equal(again.predict(x).probs, want.predict(x).probs)


def test_a_record_of_before_fits_said_how_they_start_is_read(saved):
    file = saved / "manifest.json"
    manifest = json.loads(file.read_text())
    file.write_text(json.dumps(manifest | {"record": without(manifest["record"], "start")}))
    assert load(saved, other()).record.start is None


def test_what_is_no_posterior_is_refused(saved, tmp_path):
    with pytest.raises(LoadError, match="holds no posterior"):
        load(tmp_path / "nowhere", other())
    with pytest.raises(LoadError, match="holds no posterior"):
        load(tmp_path, other())
    with pytest.raises(LoadError, match="damaged"):
        load(saved / "q.safetensors", other())
    text = (saved / "manifest.json").read_text()
    for damage in (text[:100], "", "\x00\xff"):
        (saved / "manifest.json").write_text(damage)
        with pytest.raises(LoadError, match="damaged"):
            load(saved, other())


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (lambda: NETS["cnn"].model(), r"`0.weight` is \(8, 4\) .*; in the given Sequential it is"),
        (lambda: NETS["tuple"].model(), "in the given TupleNet it is absent"),
        (lambda: other().double(), "torch.float32; .* torch.float64"),
        (lambda: nn.Sequential(*other(), nn.Linear(3, 3)), "`5.weight` is absent; .* it is"),
    ],
)
def test_another_architecture_is_named(saved, model, said):
    with pytest.raises(LoadError, match=said):
        load(saved, model())


@pytest.mark.parametrize("scale", ["learnt", "output", 0.25])
def test_a_likelihood_comes_back_with_options_and_scale(tmp_path, scale):
    net, x = nn.Linear(3, 2), torch.randn(40, 3)
    y = torch.randn(40, 1 if scale == "output" else 2)
    posterior = fit(net, (x, y), MAP(epochs=2), likelihood=Gaussian(scale))
    again = load(save(posterior, tmp_path / "saved"), nn.Linear(3, 2))
    assert again.likelihood.options() == posterior.likelihood.options()
    assert torch.equal(again.predict(x).scale, posterior.predict(x).scale)
    assert torch.equal(again.predict(x).log_prob(y), posterior.predict(x).log_prob(y))


def test_a_temperature_comes_back(posterior, tmp_path):
    warm = WeightPosterior(posterior.model, posterior.q, Categorical(2.5))
    again = load(save(warm, tmp_path / "warm"), other())
    assert again.likelihood.logit_temperature == 2.5
    assert again.record is None


def test_a_readout_must_be_given_again(tmp_path):
    net = NETS["mapping"]

    def readout(output):
        return 2 * output.logits

    posterior = fit(net.model(), net.data(), MAP(epochs=1), readout=readout, vectorize=False)
    folder, x = save(posterior, tmp_path / "saved"), net.inputs(3)
    with pytest.raises(LoadError, match="pass the same `readout=`"):
        load(folder, net.model())
    again = load(folder, net.model(), readout=readout)
    assert torch.equal(again.outputs(x), posterior.outputs(x))
    assert not again.vectorize


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_any_dtype_can_be_saved(tmp_path, dtype):
    net = NETS["cnn"].model().to(dtype)
    q = MeanField.around(net, where=bayesify.matching("0.*"))
    posterior = WeightPosterior(net, q, Categorical())
    again = load(save(posterior, tmp_path / "saved"), NETS["cnn"].model(3).to(dtype))
    for name, each in posterior.base().items():
        assert torch.equal(again.base()[name], each)


def test_parts_of_the_users_own_are_refused_before_anything_is_written(posterior, tmp_path):
    class OwnLikelihood(Categorical):
        pass

    class OwnField(MeanField):
        pass

    own = OwnField.around(posterior.model)
    for parts in ((posterior.q, OwnLikelihood()), (own, Categorical())):
        with pytest.raises(UnsupportedModelError, match=r"Own.* of your own cannot be saved"):
            save(WeightPosterior(posterior.model, *parts), tmp_path / "saved")
    with pytest.raises(UnsupportedModelError, match="str cannot be saved"):
        save("posterior", tmp_path / "saved")
    with pytest.raises(OptionError, match="notes: expected values that JSON knows"):
        save(posterior, tmp_path / "saved", notes={"model": object()})
    assert not list(tmp_path.iterdir())


def test_files_are_as_readable_as_the_umask_has_it(posterior, tmp_path):
    before = os.umask(0o027)
    try:
        folder = save(posterior, tmp_path / "a")
    finally:
        os.umask(before)
    assert {oct(each.stat().st_mode & 0o777) for each in folder.iterdir()} == {"0o640"}
