"""The artifact: what is exported answers as the flow did, proves itself, and is refused when anything is off."""

import hashlib
import json
import os
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.errors import UsageError
from common.files import write_whole
from model.bijections import ActNorm, Chain, Squeeze
from model.data import DataError, Dataset
from model.export import export, verify
from model.fold import fold
from model.glow import Glow, GlowConfig, build_glow
from model.recipe import Splits
from model.trainer import Trainer
from service.artifact import (
    ArtifactError,
    Manifest,
    compile_module,
    digest_of,
    load_records,
    methods_of,
    open_artifact,
    save,
    save_artifact,
    within_tolerance,
)
from service.artifact.file import pack
from service.catalog import find_artifacts
from tests.conftest import divide, perturbed, tiny_images, tiny_recipe, tiny_table, train_and_export

CASES: dict[str, tuple[dict[str, Any], Callable[[], Splits]]] = {
    "image": ({"num_levels": 2, "bits": 4}, tiny_images),
    "alternating": ({"num_levels": 1, "bits": 4, "partition": "alternating"}, tiny_images),
    "additive by hand": ({"bits": 4, "coupling": "additive", "mixing": "roll"}, tiny_images),
    "vector": ({"dropout": 0.1}, tiny_table),
}


@pytest.fixture(params=CASES, scope="module")
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Glow, Path, Splits]:
    """A trained flow, the artifact made of it, and its data."""
    model, make_splits = CASES[request.param]
    splits = make_splits()
    out = tmp_path_factory.mktemp("export") / "flow.pt"
    trainer = train_and_export(tiny_recipe("flow", **model), splits, out)
    return trainer.checkpoint().averaged_flow(), out, splits


def inputs(splits: Splits) -> torch.Tensor:
    assert splits.test is not None
    x = torch.from_numpy(splits.test.x[:20])
    return x.float() if splits.test.kind == "image" else x


def test_artifact_answers_as_the_eager_flow(exported: tuple[Glow, Path, Splits]) -> None:
    flow, path, splits = exported
    module, x = open_artifact(path).program, inputs(splits)
    z, log_det = flow(x)
    log_prob = flow.log_prob(x)
    encoded, encoded_log_prob = module.encode(x)
    torch.testing.assert_close(encoded, z, rtol=0, atol=1e-4)
    assert within_tolerance(module.log_prob(x).numpy(), log_prob.numpy())
    torch.testing.assert_close(encoded_log_prob, module.log_prob(x), rtol=0, atol=0)
    torch.testing.assert_close(module(x), module.log_prob(x), rtol=0, atol=0)
    torch.testing.assert_close(module.decode(z).double(), flow.inverse(z)[0].double(), rtol=1e-5, atol=1e-3)
    statistics = dict(zip(open_artifact(path).manifest.statistics, module.statistics(x).T, strict=True))
    torch.testing.assert_close(statistics.pop("log_prob"), module.log_prob(x), rtol=0, atol=0)
    torch.testing.assert_close(statistics["log_det"], log_det, rtol=0, atol=1e-3)
    of_flow = [value for name, value in statistics.items() if not name.startswith("pixel")]
    torch.testing.assert_close(torch.stack(of_flow).sum(0), log_prob, rtol=0, atol=1e-3)


def test_artifact_takes_and_returns_the_documented_types(exported: tuple[Glow, Path, Splits]) -> None:
    _, path, splits = exported
    artifact, x = open_artifact(path), inputs(splits)
    z, log_prob = artifact.program.encode(x)
    assert (z.dtype, log_prob.dtype) == (torch.float32, torch.float64)
    assert artifact.program.decode(z).dtype == x.dtype
    assert artifact.program.statistics(x).shape == (len(x), len(artifact.manifest.statistics))
    for rows in (1, 3):
        assert artifact.program.decode(z[:rows]).shape == x[:rows].shape


def test_likelihood_map_of_images_sums_to_the_likelihood(exported: tuple[Glow, Path, Splits]) -> None:
    _, path, splits = exported
    artifact, x = open_artifact(path), inputs(splits)
    if artifact.manifest.kind == "vector":
        assert not hasattr(artifact.program, "log_prob_map")
        return
    per_pixel = artifact.program.log_prob_map(x)
    assert per_pixel.shape == (len(x), *artifact.manifest.shape[1:])
    torch.testing.assert_close(per_pixel.sum((1, 2)), artifact.program.log_prob(x), rtol=0, atol=1e-9)


def test_nothing_that_the_input_does_not_decide_is_left_to_compute(exported: tuple[Glow, Path, Splits]) -> None:
    flow, _, _ = exported
    folded = fold(flow)
    assert not any(isinstance(module, ActNorm) for module in folded.modules())
    assert not any(hasattr(module, "log_scale") for module in folded.modules())
    assert not any(parameter.requires_grad for parameter in folded.parameters())


def test_a_step_folds_to_one_matrix_and_its_determinant_into_the_constant() -> None:
    torch.manual_seed(0)
    flow = perturbed(build_glow((1, 4, 4), GlowConfig(num_levels=2, num_steps=2, width=8)))
    folded = fold(flow)
    constant = 0.0
    levels = zip([*flow.levels, flow.top], [*folded.levels, folded.top], flow.latent_shapes, strict=True)
    for level, folded_level, (_, height, width) in levels:
        _, *layers = level.steps
        for step, actnorm, mixing in zip(folded_level.steps, layers[::3], layers[1::3], strict=True):
            weight = mixing.weight() @ torch.diag(actnorm.log_scale.exp())
            torch.testing.assert_close(step.weight[:, :, 0, 0].double(), weight, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(step.bias.double(), weight @ actnorm.bias, rtol=1e-6, atol=1e-6)
            inverse = torch.linalg.inv(step.weight[:, :, 0, 0].double())
            torch.testing.assert_close(step.inverse_weight[:, :, 0, 0], inverse.float(), rtol=0, atol=0)
            constant += height * width * (actnorm.log_scale.sum() + mixing.log_s.sum()).item()
    assert folded.constant.item() == pytest.approx(constant, abs=1e-4)


def test_extreme_finite_inputs_get_finite_answers(exported: tuple[Glow, Path, Splits]) -> None:
    _, path, splits = exported
    artifact, x = open_artifact(path), inputs(splits)
    extreme = x[:4].clone()
    if artifact.manifest.kind == "vector":
        extreme[0], extreme[1], extreme[2, 0] = 1e300, -1e300, 1e30
    else:
        extreme[0], extreme[1] = -0.5, 15.5
    z, log_prob = artifact.program.encode(extreme)
    assert torch.isfinite(z).all()
    assert torch.isfinite(log_prob).all()
    assert torch.isfinite(artifact.program.statistics(extreme)).all()
    if artifact.manifest.kind == "image":
        sums = artifact.program.log_prob_map(extreme).sum((1, 2))
        torch.testing.assert_close(sums, log_prob, rtol=1e-9, atol=1e-9)
    if artifact.manifest.kind == "vector":
        assert (log_prob[:3] < artifact.program.log_prob(x).min()).all()
    huge = torch.full_like(z, 3e38)
    assert torch.isfinite(artifact.program.decode(huge)).all()


def test_manifest_is_readable_as_a_plain_zip_record(exported: tuple[Glow, Path, Splits]) -> None:
    _, path, splits = exported
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith("manifest.json"))
        manifest = json.loads(archive.read(name))
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    assert manifest["data_digest"] == splits.fit.digest
    for scores in manifest["calibration"]["scores"].values():
        assert scores == sorted(scores)
        assert len(scores) == len(splits.calibration.x)
    assert manifest["test"]["rows"] == 100
    assert "debug_pkl" not in "".join(records)
    assert str(Path.cwd()).encode() not in b"".join(records.values())


def test_a_column_of_large_numbers_keeps_its_digits(tmp_path: Path) -> None:
    x = 1e9 + np.random.default_rng(0).normal(size=(400, 2))
    splits = divide(Dataset(x, ["a", "b"]))
    trainer = train_and_export(tiny_recipe("flow"), splits, tmp_path / "flow.pt")
    module, inputs = open_artifact(tmp_path / "flow.pt").program, torch.from_numpy(x)
    expected = trainer.checkpoint().averaged_flow().log_prob(inputs)
    assert within_tolerance(module.log_prob(inputs).numpy(), expected.numpy())
    assert (module.decode(module.encode(inputs)[0]) - inputs).abs().max() < 1e-3


def test_an_export_that_answers_otherwise_than_the_flow_is_refused() -> None:
    splits = tiny_table()
    trainer = Trainer(tiny_recipe("flow"), splits)
    for _ in range(12):
        trainer.train_step()
    flow, x = trainer.checkpoint().averaged_flow(), torch.from_numpy(splits.calibration.x)
    module = load_records(save(compile_module(fold(flow), methods_of("vector"))))
    verify(module, flow, x, trainer.columns)
    flow.top.steps[0].bias += 0.1  # type: ignore[index, union-attr]
    with pytest.raises(ArtifactError, match=r"exported .* differ"):
        verify(module, flow, x, trainer.columns)
    flow.top.steps[0].bias += torch.inf  # type: ignore[index, union-attr]
    with pytest.raises(ArtifactError, match="decoding draws from the prior gives values that are not finite"):
        verify(module, flow, x, trainer.columns)


def test_exporting_is_refused_on_other_data_and_to_impossible_places(tmp_path: Path) -> None:
    splits = tiny_table()
    checkpoint = Trainer(tiny_recipe("flow"), splits).checkpoint()
    with pytest.raises(DataError, match="not the data that the checkpoint was trained on"):
        export(checkpoint, tiny_table(404), tmp_path / "flow.pt")
    for out in (tmp_path, tmp_path / "none" / "flow.pt"):
        with pytest.raises(UsageError, match="must be a file name in a folder that exists"):
            export(checkpoint, splits, out)
    with pytest.raises(UsageError, match=r"flow\.txt: must end in \.pt"):  # which --models FOLDER would not find
        export(checkpoint, splits, tmp_path / "flow.txt")


def test_exporting_twice_gives_the_same_version(tmp_path: Path) -> None:
    splits = tiny_table()
    trainer = Trainer(tiny_recipe("flow"), splits)
    trainer.train_step()
    first = export(trainer.checkpoint(), splits, tmp_path / "a.pt")
    assert export(trainer.checkpoint(), splits, tmp_path / "b.pt").version == first.version


@pytest.fixture(scope="module")
def artifact_bytes(models_dir: Path) -> bytes:
    return (models_dir / "tiny-table.pt").read_bytes()


def test_any_flipped_byte_is_refused(artifact_bytes: bytes, tmp_path: Path) -> None:
    path = tmp_path / "flow.pt"
    positions = np.random.default_rng(0).integers(0, len(artifact_bytes), 60).tolist()
    for position in [*positions, 0, len(artifact_bytes) - 1, len(artifact_bytes) - 71, len(artifact_bytes) - 80]:
        damaged = bytearray(artifact_bytes)
        damaged[position] ^= 0x40
        path.write_bytes(damaged)
        with pytest.raises(ArtifactError, match=r"is damaged|does not end in its checksum"):
            open_artifact(path)


@pytest.mark.parametrize("keep", [0, 10, 0.5, -1, -71])
def test_a_truncated_artifact_is_refused(artifact_bytes: bytes, tmp_path: Path, keep: float) -> None:
    path = tmp_path / "flow.pt"
    path.write_bytes(artifact_bytes[: int(keep * len(artifact_bytes)) if isinstance(keep, float) else keep])
    with pytest.raises(ArtifactError, match="does not end in its checksum: truncated, or not an artifact"):
        open_artifact(path)


def repacked(artifact_bytes: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    """The artifact with a changed manifest and a checksum that fits it, as a hostile or careless tool would make."""
    with zipfile.ZipFile(BytesIO(artifact_bytes)) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    name = next(name for name in records if name.endswith("manifest.json"))
    manifest = json.loads(records[name])
    change(manifest)
    records[name] = json.dumps(manifest).encode()
    return pack(records)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("golden"), "manifest field 'golden': Field required"),
        (lambda m: m.update(extra=1), "manifest field 'extra'"),
        (lambda m: m.update(format_version=1), "manifest field 'format_version'"),
        (lambda m: m.update(name="../evil"), "manifest field 'name'"),
        (lambda m: m.update(kind="sound"), "manifest field 'kind'"),
        (lambda m: m.update(shape=[4]), "columns must name each of 4 dimensions, got 3"),
        (lambda m: m.update(latent_layout=[]), "latent_layout must cover 3 dimensions"),
        (lambda m: m.update(version="0" * 12), "manifest field 'version' is 000000000000, but the records are"),
        (lambda m: m["columns"][0].update(scale=0), "manifest field 'columns.0.scale'"),
        (lambda m: m["calibration"]["scores"]["typicality"].reverse(), "scores must be ascending"),
        (lambda m: m["columns"][0].update(name="b"), "columns must have different names"),
        (
            lambda m: m["columns"][0].update(type="duplicate", duplicate_of="count"),
            "column 'a' must repeat one before it, not 'count'",
        ),
        (lambda m: m["calibration"].update(alpha=0.001), "alpha must be at least 0.0099"),
        (lambda m: m["golden"].update(inputs=[]), "golden must hold as many statistics and latents as inputs"),
        (lambda m: m["golden"]["statistics"][0].__setitem__(0, 1.0), "golden case: log_prob is"),
        (lambda m: m.update(statistics=["one"]), "statistics must be different, log_prob the first"),
        (lambda m: m["statistics"].append("one"), "golden statistics must be the 4 of"),
        (lambda m: m["statistics"].__setitem__(2, "one"), "scoring.density.statistics must be among"),
        (lambda m: m["scoring"].update(codec="png"), "only grey and RGB images have a picture's codec"),
        (lambda m: m["scoring"].update(default="complexity_corrected"), "scoring.default must be one of its scores"),
        (lambda m: m["scoring"].update(density=None), "calibration.scores must be those of negative_log_likelihood"),
        (lambda m: m["calibration"]["scores"]["density"].pop(), "scores must all be of the same rows"),
        (
            lambda m: m["scoring"]["density"]["mixture"]["scale"].pop(),
            "must be of 1 components and 2",
        ),
        (lambda m: m["scoring"]["density"]["statistics"].pop(), "mixture must be over 1 statistics, got 2"),
        (lambda m: m["scoring"]["density"]["mixture"]["weights"].__setitem__(0, 0), "weights must be positive"),
        (lambda m: m.update(value_range=[0, 1]), "images have a value_range, vectors have none"),
        (lambda m: m["latent_layout"][0].update(shape=[-3, -1, 1]), "manifest field 'latent_layout.0.shape.0'"),
        (lambda m: m["golden"]["latents"][0].__setitem__(0, 9.0), "golden case: latents differ by"),
    ],
)
def test_a_wrong_manifest_field_is_named(
    artifact_bytes: bytes, tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    path = tmp_path / "flow.pt"
    path.write_bytes(repacked(artifact_bytes, change))
    with pytest.raises(ArtifactError) as raised:
        open_artifact(path)
    assert message in str(raised.value)
    assert str(path) in str(raised.value)


def test_other_files_are_refused_by_what_they_are_not(tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    with pytest.raises(ArtifactError, match="No such file"):
        open_artifact(path)
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), path)
    with pytest.raises(ArtifactError, match="not an artifact"):
        open_artifact(path)
    with zipfile.ZipFile(path) as archive:
        path.write_bytes(pack({info.filename: archive.read(info) for info in archive.infolist()}))
    with pytest.raises(ArtifactError, match=r"holds no extra/manifest\.json"):
        open_artifact(path)


def test_records_that_a_whole_checksum_hides_are_still_checked(artifact_bytes: bytes, tmp_path: Path) -> None:
    path = tmp_path / "flow.pt"
    with zipfile.ZipFile(BytesIO(artifact_bytes)) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    for changed, message in (
        ({**records, "archive/version": b"\xff\xff"}, "but the records are"),
        ({**records, "archive/evil/extra/manifest.json": b"{}"}, "but the records are"),
        ({**records, "other/extra/manifest.json": b"{}"}, "all in one folder"),
    ):
        path.write_bytes(pack(changed))
        with pytest.raises(ArtifactError, match=message):
            open_artifact(path)
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data", bytes(2**20))
        archive.comment = b" " * 71
    body = buffer.getvalue()[:-71]
    path.write_bytes(body + b"sha256:" + hashlib.sha256(body).hexdigest().encode())
    with pytest.raises(ArtifactError, match="must hold its records as they are"):
        open_artifact(path)
    body = b"not a zip"
    path.write_bytes(body + b"sha256:" + hashlib.sha256(body).hexdigest().encode())
    with pytest.raises(ArtifactError, match="is not a readable zip archive"):
        open_artifact(path)


def test_what_may_have_no_end_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "flow.pt")
    for read in (open_artifact, digest_of):
        with pytest.raises(ArtifactError, match=r"flow\.pt: is no file"):
            read(tmp_path / "flow.pt")


def test_a_failed_check_leaves_no_file(artifact_bytes: bytes, tmp_path: Path) -> None:
    with zipfile.ZipFile(BytesIO(artifact_bytes)) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    name = next(name for name in records if name.endswith("manifest.json"))
    manifest = Manifest.model_validate_json(records.pop(name))
    wrong = manifest.model_copy(update={"golden": manifest.golden.model_copy(update={"statistics": [[0.0] * 3] * 4})})
    with pytest.raises(ArtifactError, match="golden case"):
        save_artifact(tmp_path / "flow.pt", records, wrong)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_folded_is_named() -> None:
    flow = build_glow((1, 4, 4), GlowConfig(num_steps=1, width=4))
    flow.top.steps.append(ActNorm(4))  # type: ignore[operator, union-attr]
    with pytest.raises(ValueError, match="must end in a coupling"):
        fold(flow)
    flow.top.steps.append(Squeeze())  # type: ignore[operator, union-attr]
    with pytest.raises(ValueError, match="cannot fold a Squeeze"):
        fold(flow)
    flow.top = Chain([Squeeze(), flow.top.steps[3]])  # type: ignore[index, list-item]
    with pytest.raises(ValueError, match="a coupling must follow an affine map"):
        fold(flow)


def test_two_that_write_one_file_at_once_each_leave_it_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"

    def write(partial: Path) -> None:
        partial.write_text("first")
        write_whole(path, lambda other: other.write_text("second"))
        assert path.read_text() == "second"

    write_whole(path, write)
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_crash_leaves_is_not_taken_for_an_artifact(models_dir: Path, tmp_path: Path) -> None:
    def write(partial: Path) -> None:
        partial.write_bytes((models_dir / "tiny-table.pt").read_bytes())
        with pytest.raises(ArtifactError, match="holds no artifact"):  # a crash would leave what is here now
            find_artifacts([tmp_path])

    write_whole(tmp_path / "flow.pt", write)
    assert find_artifacts([tmp_path]) == [tmp_path / "flow.pt"]
