"""Sizes read from the configuration files, and what is refused."""

import json

import pytest
from transformers import JinaEmbeddingsV3Config

from deployments.model.architecture import Architecture, TextArchitecture
from deployments.model.errors import CheckpointError
from deployments.model.weights.source import DEMO


@pytest.fixture
def write(tmp_path):
    """Write both files and read them back as an Architecture."""

    def write_and_read(config, pixels=None):
        size = config.get("vision_config", {}).get("image_size", 512)
        (tmp_path / "config.json").write_text(json.dumps(config))
        default = {"size": size, "resize_mode": "shortest", "interpolation": "bicubic"}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(pixels or default))
        return Architecture.read(tmp_path)

    return write_and_read


def test_published_fields_alone_mean_jina_embeddings_v3(write, published_config) -> None:
    """The sizes that the published file leaves out are those of transformers' own defaults."""
    text = write(published_config).text
    oracle = JinaEmbeddingsV3Config()
    same = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    same += ("intermediate_size", "layer_norm_eps", "type_vocab_size", "max_position_embeddings")
    same += ("pad_token_id",)
    assert {x: getattr(text, x) for x in same} == {x: getattr(oracle, x) for x in same}
    assert text.rotary_emb_base == oracle.rope_parameters["rope_theta"] == 20000
    assert text == TextArchitecture()


def test_published_text_sizes(write, published_config) -> None:
    """The derived values are the published ones; the adapter's scale is 1, not 1/4."""
    text = write(published_config).text
    assert (text.head_dim, text.lora_rank, text.lora_scale, text.max_tokens) == (64, 4, 1.0, 8192)
    assert text.query_prefix == "Represent the query for retrieving evidence documents: "


def test_published_vision_sizes(write, published_config) -> None:
    """36 x 36 patches and CLS, 16 heads, a SwiGLU of 2730 (truncated, not rounded to 2731)."""
    vision = write(published_config).vision
    assert (vision.grid, vision.num_tokens, vision.num_heads) == (36, 1297, 16)
    assert (vision.mlp_width, vision.pretrained_grid, vision.layer_norm_eps) == (2730, 16, 1e-6)
    assert (vision.width, vision.layers, vision.image_size) == (1024, 24, 512)


def test_nested_values_override_the_defaults(write, published_config) -> None:
    """`hf_model_config_kwargs` wins, down to the prefix of the query task."""
    nested = published_config["text_config"]["hf_model_config_kwargs"]
    nested |= {"hidden_size": 192, "rotary_emb_base": 500.0, "lora_alpha": 1}
    nested["task_instructions"]["retrieval.query"] = "find: "
    architecture = write(published_config)
    text = architecture.text
    assert (text.hidden_size, text.rotary_emb_base, text.lora_scale) == (192, 500.0, 0.25)
    assert text.query_prefix == "find: "
    assert architecture.width == 192


def test_the_shipped_sizes() -> None:
    """The shipped checkpoint has the sizes that its README lists."""
    architecture = Architecture.read(DEMO)
    text, vision = architecture.text, architecture.vision
    assert (text.num_hidden_layers, text.hidden_size, text.intermediate_size) == (5, 192, 768)
    assert (text.num_attention_heads, text.vocab_size, text.max_tokens) == (3, 14500, 8192)
    assert (vision.layers, vision.width, vision.mlp_width, vision.image_size) == (6, 192, 510, 120)
    assert (vision.grid, vision.pretrained_grid) == (8, 4)
    assert architecture.matryoshka_dimensions == (32, 64, 128, 192)


def test_pixel_statistics_come_from_the_preprocessor_file(write, published_config) -> None:
    """Mean and standard deviation are read, not assumed."""
    pixels = {"size": 512, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    vision = write(published_config, pixels).vision
    assert (vision.mean, vision.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


@pytest.mark.parametrize(
    ("place", "name", "value"),
    [
        ("", "model_type", "clip"),
        ("", "add_projections", True),
        ("text_config", "pooler_type", "cls_pooler"),
        ("text_config", "proj_type", "linear"),
        ("text_config", "default_lora_task", None),
        ("text_config", "default_instruction_task", "retrieval.query"),
        ("kwargs", "lora_adaptations", ["retrieval.query", "separation"]),
        ("kwargs", "hidden_act", "gelu_new"),
        ("vision_config", "subln", False),
        ("vision_config", "post_norm", True),
        ("vision_config", "ls_init_value", 1e-5),
        ("vision_config", "intp_freq", False),
    ],
)
def test_another_family_is_refused(write, published_config, place, name, value) -> None:
    """A trait that the towers lack is refused by its name, not ignored."""
    write(published_config)
    part = published_config if place == "" else published_config.get(place)
    if place == "kwargs":
        part = published_config["text_config"]["hf_model_config_kwargs"]
    part[name] = value
    with pytest.raises(CheckpointError, match=name):
        write(published_config)


@pytest.mark.parametrize(
    "pixels",
    [{"size": 448}, {"size": 512, "resize_mode": "squash"}, {"size": 512, "interpolation": "none"}],
)
def test_other_preprocessing_is_refused(write, published_config, pixels) -> None:
    """Preprocessing that is not built, or does not fit the tower, is refused."""
    with pytest.raises(CheckpointError, match="preprocessor"):
        write(published_config, pixels)


def test_broken_files_are_refused(tmp_path) -> None:
    """A missing file, bad JSON and a JSON list each say which file is meant."""
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        Architecture.read(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json is not valid JSON"):
        Architecture.read(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"config\.json must hold a JSON object, not list"):
        Architecture.read(tmp_path)
