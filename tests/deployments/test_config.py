"""The configuration: frozen, strict, and free of contradictions."""

import pytest
from pydantic import ValidationError

from deployments.config import AppConfig

REFUSED = {
    "an unknown key": ({"text": {"max_tokens": 1}}, "max_tokens"),
    "no tower at all": ({"text": {"enabled": False}, "vision": {"enabled": False}}, "nothing"),
    "an image larger than a chunk": ({"images": {"max_image_bytes": 10**9}}, "one image"),
    "files of a server's disk": ({"images": {"local_files": True}}, "bulk"),
    "too few calls to fill a batch": ({"text": {"max_ongoing_requests": 3}}, "set it to 4"),
    "too few calls for pictures": ({"vision": {"max_ongoing_requests": 5}}, "set it to 8"),
    "bounds the wrong way round": (
        {"text": {"scaling": {"min_replicas": 3, "max_replicas": 2}}},
        "exceeds max_replicas",
    ),
    "a network that is none": ({"images": {"allow_networks": ["10.0.0.1/8"]}}, "host bits"),
    "a host with a scheme": ({"images": {"allow_hosts": ["https://a.example"]}}, "not a host"),
    "a host with a port": ({"images": {"deny_hosts": ["a.example:80"]}}, "not a host"),
    "a port that is none": ({"images": {"ports": [80, 70000]}}, "images.ports.1"),
    "a folder that depends on where it starts": ({"images": {"file_roots": ["data"]}}, "absolute"),
    "a GPU and a half": ({"text": {"num_gpus": 1.5}}, "whole ones"),
    "a device that is none": ({"model": {"device": "gpu"}}, "model.device"),
    "a key that nobody can send": ({"api_keys": [" "]}, "an API key is empty"),
}


@pytest.mark.parametrize(("settings", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_a_contradiction_is_refused_with_what_to_change(settings, words):
    """Nothing starts with settings that cannot work."""
    with pytest.raises(ValidationError, match=words):
        AppConfig.model_validate(settings)


def test_the_defaults_are_valid_and_frozen():
    """An empty configuration serves the shipped checkpoint, and cannot be changed later."""
    config = AppConfig()
    assert config.model.source == "demo"
    AppConfig.model_validate(
        {
            "model": {"device": "cuda:1"},
            "text": {"num_gpus": 2},
            "images": {
                "allow_networks": ["10.0.0.0/8", "fd00::/8"],
                "allow_hosts": [".example.com", "b\u00fccher.example", "::1"],
                "file_roots": ["/data"],
            },
        }
    )
    with pytest.raises(ValidationError, match="frozen"):
        config.text = config.text


def test_keys_do_not_show_when_the_configuration_is_printed():
    """A log line with the configuration holds no secret."""
    config = AppConfig.model_validate({"api_keys": ["very-secret"]})
    assert (
        "very-secret" not in f"{config} {config!r} {config.model_dump()} {config.model_dump_json()}"
    )


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("demo", "jina-clip-demo"),
        ("jinaai/jina-clip-v2", "jina-clip-v2"),
        ("s3://bucket/models/mine/", "mine"),
    ],
)
def test_the_served_name_is_the_sources_last_part(source, name):
    """Unless a name is given."""
    assert AppConfig.model_validate({"model": {"source": source}}).model.served_name == name
    named = AppConfig.model_validate({"model": {"source": source, "name": "x"}})
    assert named.model.served_name == "x"
