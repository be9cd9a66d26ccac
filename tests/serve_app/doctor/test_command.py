"""`jina-clip-serve doctor`: what it finds, and how published weights are verified."""

import json
import socket

import numpy as np
import pytest
from click.testing import CliRunner

from deployments.config import AppConfig
from deployments.model.weights.source import DEMO, FILES
from serve_app.cli import main
from serve_app.doctor import machine, published, weights
from serve_app.doctor.memory import GIB, judge


def doctor(*arguments):
    """Run the command; return its exit code and the findings by topic."""
    result = CliRunner().invoke(main, ["doctor", "--json", *arguments])
    assert result.exit_code in (0, 1), result.output
    return result.exit_code, {x["topic"]: x for x in json.loads(result.stdout)}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def taken():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_the_shipped_checkpoint_on_this_machine_passes(monkeypatch):
    """Every topic is looked at, the checkpoint's sum is the pinned one, and the exit code is 0."""
    monkeypatch.setattr(machine, "FEWEST_OPEN_FILES", 1)
    code, found = doctor("--port", str(free_port()))
    topics = {"configuration", "ingress", "HAProxy", "open files", "versions", "GPUs", "weights"}
    assert topics | {"text attention", "vision attention", "sha256", "memory"} <= set(found)
    assert (code, [x for x in found.values() if x["status"] == "fails"]) == (0, [])
    assert "shipped checkpoint" in found["sha256"]["found"]


def test_a_taken_port_fails_and_says_what_to_do(taken):
    """The exit code is 1, for this alone."""
    code, found = doctor("--port", str(taken))
    assert code == 1
    assert found[f"port {taken} (HTTP)"]["status"] == "fails"
    assert "another port" in found[f"port {taken} (HTTP)"]["advice"]


def test_ray_without_its_token_is_a_warning(monkeypatch):
    """Its ports then run what anybody sends them; with it, or where nothing is set, all is well."""
    for mode, status in (("disabled", "warning"), ("token", "ok"), (None, "ok")):
        environment = {} if mode is None else {"RAY_AUTH_MODE": mode}
        assert machine.token(environment).status == status
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    _, found = doctor("--port", str(free_port()))
    assert "RAY_AUTH_MODE" in found["Ray's token"]["advice"]


def test_contradictory_settings_are_a_finding():
    """The message is the validation's own; nothing else is looked at."""
    code, found = doctor("images.max_image_bytes=99999999")
    assert code == 1
    assert list(found) == ["configuration"]
    assert "one image must fit" in found["configuration"]["found"]


def test_gpus_that_are_not_here_fail(monkeypatch):
    """Two GPUs are asked for, none is here; with two it is well."""
    from deployments.model.runtime import hardware

    config = AppConfig.model_validate({"text": {"num_gpus": 1}, "vision": {"num_gpus": 1}})
    monkeypatch.setattr(hardware, "gpus", list)
    (finding,) = machine.gpu(config)
    assert finding.status == "fails"
    assert "asks for 2" in finding.found
    monkeypatch.setattr(hardware, "gpus", lambda: 2 * [hardware.Gpu("H100", "9.0", GIB, GIB)])
    monkeypatch.setattr(machine, "_version", lambda _: "1.0")
    assert {finding.status for finding in machine.gpu(config)} == {"ok"}


@pytest.mark.parametrize(
    ("driver", "status"), [("580.95.05", "ok"), ("570.86.10", "warning"), (None, "ok")]
)
def test_a_driver_too_old_for_the_wheels_is_a_warning(monkeypatch, driver, status):
    """CUDA 13 needs 580; what is missing of the extra `gpu` is named with its cost."""
    from deployments.model.runtime import hardware

    config = AppConfig.model_validate({"text": {"num_gpus": 1}})
    monkeypatch.setattr(hardware, "gpus", lambda: [hardware.Gpu("H100", "9.0", GIB, GIB)])
    monkeypatch.setattr(hardware, "driver", lambda: driver)
    monkeypatch.setattr(machine, "_version", lambda name: "missing" if "flash" in name else "1.0")
    found = {finding.topic: finding for finding in machine.gpu(config)}
    assert found["driver"].status == status
    assert found["flash-attn-4"].status == "warning"
    assert "a third longer" in found["flash-attn-4"].found
    assert "torchvision" not in found


def test_weights_that_are_not_the_shipped_ones_are_told_by_their_sum(tmp_path):
    """One changed byte changes the sum; own weights have none to be compared with."""
    for name in FILES:
        (tmp_path / name).write_bytes((DEMO / name).read_bytes())
    data = bytearray((tmp_path / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(data)
    digest = weights.sha256(tmp_path / "model.safetensors")
    assert weights.checksum("demo", tmp_path, digest).status == "fails"
    assert weights.checksum("demo", DEMO, weights.sha256(DEMO / FILES[0])).status == "ok"
    assert "your own" in weights.checksum(str(tmp_path), tmp_path, digest).found
    assert weights.checksum(weights.PUBLISHED, tmp_path, digest).status == "fails"


def test_missing_weights_fail_and_those_of_the_hub_are_only_a_warning_with_a_network(
    tmp_path, monkeypatch
):
    """A folder that is not there cannot be mended at start; a hub id may be downloaded."""
    assert weights.locate(str(tmp_path / "no"), None)[1].status == "fails"
    assert weights.locate(str(tmp_path), None)[1].status == "fails"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert weights.locate("nobody/nothing", None)[1].status == "warning"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert weights.locate("nobody/nothing", None)[1].status == "fails"


def test_s3_credentials_are_looked_for_where_s3_is_read_from(monkeypatch, tmp_path):
    """None asked for, none looked for; asked for and missing fails; variables are found."""
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    from_s3 = AppConfig.model_validate({"model": {"source": "s3://bucket/model"}})
    assert weights.s3_credentials(AppConfig()) == []
    assert weights.s3_credentials(from_s3)[0].status == "fails"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    assert weights.s3_credentials(from_s3)[0].status == "ok"


@pytest.mark.parametrize(("free", "status"), [(8, "ok"), (3, "warning"), (1, "fails")])
def test_memory_fails_only_where_it_can_never_fit(free, status):
    """Four GiB: in use by others is a warning, more than there is fails."""
    total = 2 * GIB if status == "fails" else 16 * GIB
    finding = judge("a GPU", 4 * GIB, free * GIB, total, {"text": 4 * GIB})
    assert finding.status == status


class Published:
    """Gives vectors with exactly the published numbers, or with some of them changed."""

    def __init__(self, component=0.0, score=0.0, image=0.0, swap=False):
        self.component, self.score, self.image, self.swap = component, score, image, swap

    def encode_text(self, texts, task=None):
        return np.stack([self.text(text, task) for text in texts])

    def text(self, text, task):
        if (text, task) == (published.QUERY, "retrieval.query"):
            return np.eye(32, dtype=np.float32)[31]
        row = np.zeros(32, dtype=np.float32)
        if text == published.TEXT:
            row[:10] = published.COMPONENTS[0] + self.component
            return row
        scores = published.CARD
        if self.swap:
            scores = dict(zip(scores, sorted(scores.values()), strict=True))
        row[31] = scores[text] + self.score
        return row

    def encode_image(self, images):
        first, second = published.TEXT_IMAGE
        rows = np.zeros((2, 32), dtype=np.float32)
        rows[0, 31], rows[1, 31], rows[0, 0] = first, second, 1
        rows[1, 0] = published.IMAGE_IMAGE - first * second + self.image
        assert images == [b"1.jpg", b"2.jpg"]
        return rows


def statuses(encoder, fetch=lambda url: url[-5:].encode()):
    return [finding.status for finding in published.verify(encoder, fetch)]


def test_the_published_numbers_pass():
    """Components, scores, ranking and pictures."""
    assert statuses(Published()) == ["ok"] * 4
    assert statuses(Published(component=1.9e-3, score=0.029, image=0.029)) == ["ok"] * 4


@pytest.mark.parametrize(
    ("encoder", "wrong"),
    [
        (Published(component=5e-3), 0),
        (Published(score=0.04), 1),
        (Published(image=0.04), 3),
    ],
)
def test_a_number_outside_its_tolerance_fails_alone(encoder, wrong):
    """Each check sees its own numbers."""
    assert statuses(encoder) == ["fails" if i == wrong else "ok" for i in range(4)]


def test_another_ranking_fails():
    """Scores given to other languages change the order and the scores."""
    assert statuses(Published(swap=True))[1:3] == ["fails", "fails"]


def test_pictures_that_cannot_be_fetched_are_a_warning():
    """A machine without a network verifies the texts."""

    def offline(url):
        raise OSError("no network")

    assert statuses(Published(), offline) == ["ok", "ok", "ok", "warning"]


def test_the_shipped_checkpoint_does_not_pass_for_the_published_one(demo):
    """A real encoder with other weights fails the vector, the scores and the ranking."""
    query = demo.encode_text([published.QUERY], published.QUERY_TASK)[0]
    found = [published.text_vector(demo), *published.text_scores(demo, query)]
    assert [finding.status for finding in found] == ["fails"] * 3


@pytest.mark.parametrize(("gain", "offers"), [(1.9, True), (0.5, False)])
def test_bfloat16_is_offered_on_a_cpu_where_it_is_faster(gain, offers, monkeypatch):
    """The gain is measured, shown, and offered only where there is one; a choice ends the topic."""
    from deployments.model.runtime import hardware

    monkeypatch.setattr(hardware, "bfloat16_gain", lambda: gain)
    (finding,) = machine.precision(AppConfig.model_validate({"model": {"device": "cpu"}}))
    assert f"{gain} times" in finding.found
    assert ("model.dtype=bfloat16" in finding.found) is offers
    chosen = AppConfig.model_validate({"model": {"device": "cpu", "dtype": "float32"}})
    assert machine.precision(chosen) == []


def test_the_gain_of_bfloat16_is_a_ratio_of_times():
    """It is positive, and far from what a wrong unit would give."""
    from deployments.model.runtime.hardware import bfloat16_gain

    assert 0.001 < bfloat16_gain() < 100
