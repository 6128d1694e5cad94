"""What the tests of the evaluation share."""

import pytest

from cond_pipelines.networks.text_encoders import new_text_encoder


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """A CLIP model of tiny size, and a tokenizer made from captions."""
    from transformers import CLIPConfig, CLIPModel

    folder = tmp_path_factory.mktemp("clip")
    _, tokenizer = new_text_encoder(["a red circle on white", "a blue square"], hidden_size=16, num_layers=1)
    tokenizer.save_pretrained(folder)
    part = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = part | {"vocab_size": len(tokenizer), "max_position_embeddings": tokenizer.model_max_length}
    text |= {"eos_token_id": tokenizer.eos_token_id}
    vision = part | {"image_size": 16, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        '{"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 16}, "crop_size": 16, '
        '"image_mean": [0, 0, 0], "image_std": [1, 1, 1]}'
    )
    return folder
