"""Prompt sets: what ships, what files may hold, and what is refused by file and key."""

import json

import numpy as np
import pytest
import yaml

import semalign_jax as sa

VALID = {
    "name": "demo",
    "task": "multi-label",
    "templates": ["{}", "Chest X-ray. {}"],
    "classes": [
        {"name": "Edema", "positive": ["Edema."], "negative": ["No edema.", "Dry lungs."]},
        {"name": "Mass", "positive": ["A {odd} mass.", "Tumour."], "negative": ["No mass."]},
    ],
}
LOCAL = """Aortic enlargement, Atelectasis, Calcification, Cardiomegaly, Clavicle fracture,
    Consolidation, Edema, Emphysema, Enlarged PA, ILD, Infiltration, Lung Opacity, Lung cavity,
    Lung cyst, Mediastinal shift, Nodule/Mass, Pleural effusion, Pleural thickening, Pneumothorax,
    Pulmonary fibrosis, Rib fracture, Other lesion"""
GLOBAL = "COPD, Lung tumor, Pneumonia, Tuberculosis, Other diseases, No finding"


def write(path, data):
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return path


def edited(**changes):
    return {key: value for key, value in (VALID | changes).items() if value is not None}


def edited_class(**changes):
    first = {k: v for k, v in (VALID["classes"][0] | changes).items() if v is not None}
    return edited(classes=[first, VALID["classes"][1]])


def test_shipped_sets():
    assert sa.zeroshot.shipped_prompt_sets() == ("rsna_pneumonia", "vindr_cxr")
    vindr = sa.zeroshot.load_prompts("vindr_cxr")
    names = [name.strip() for part in (LOCAL, GLOBAL) for name in part.split(",")]
    assert vindr.names == tuple(names)
    assert len(names) == 28
    assert sa.zeroshot.load_prompts("rsna_pneumonia").names == ("Pneumonia",)
    for name in sa.zeroshot.shipped_prompt_sets():
        prompt_set = sa.zeroshot.load_prompts(name)
        assert (prompt_set.name, prompt_set.task) == (name, "multi-label")
        assert min(len(c.positive) for c in prompt_set.classes) >= 3
        assert min(len(c.negative) for c in prompt_set.classes) >= 3
        for c in prompt_set.classes:
            assert len(set(c.positive + c.negative)) == len(c.positive + c.negative)


def test_texts_are_every_prompt_in_every_template(tmp_path):
    texts = sa.zeroshot.prompt_texts(sa.zeroshot.load_prompts(write(tmp_path / "a.json", VALID)))
    assert texts.texts == (
        "Edema.",
        "Chest X-ray. Edema.",
        "No edema.",
        "Chest X-ray. No edema.",
        "Dry lungs.",
        "Chest X-ray. Dry lungs.",
        "A {odd} mass.",
        "Chest X-ray. A {odd} mass.",
        "Tumour.",
        "Chest X-ray. Tumour.",
        "No mass.",
        "Chest X-ray. No mass.",
    )
    np.testing.assert_array_equal(texts.classes, [0] * 6 + [1] * 6)
    np.testing.assert_array_equal(texts.positive, [1, 1, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0])


def test_single_label_sets_use_positive_prompts_only(tmp_path):
    data = edited(task="single-label", templates=None)
    texts = sa.zeroshot.prompt_texts(sa.zeroshot.load_prompts(write(tmp_path / "a.json", data)))
    assert texts.texts == ("Edema.", "A {odd} mass.", "Tumour.")
    assert texts.positive.all()


def test_yaml_reads_the_same(tmp_path):
    expected = sa.zeroshot.load_prompts(write(tmp_path / "a.json", VALID))
    for suffix in ("yaml", "yml"):
        assert (
            sa.zeroshot.load_prompts(write(tmp_path / f"a.{suffix}", yaml.safe_dump(VALID)))
            == expected
        )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (edited(extra=1), "unknown key 'extra'"),
        (edited(name=None), "the key 'name' is missing"),
        (edited(classes=None), "the key 'classes' is missing"),
        (edited(task="binary"), "task must be one of"),
        (edited(templates=[]), "templates is empty"),
        (edited(templates=[" "]), r"templates\[0\] is empty"),
        (edited(templates=["X-ray."]), r"templates\[0\] must hold the placeholder"),
        (edited(templates=["{} {}"]), r"templates\[0\] must hold the placeholder"),
        (edited(templates="{}"), "templates must be a list of texts"),
        (edited(classes={"a": 1}), "classes must be a list"),
        (edited(classes=[]), "classes is empty"),
        (edited(classes=["Edema"]), r"classes\[0\]: expected an object"),
        (
            edited(classes=[VALID["classes"][0]] * 2),
            "the class 'Edema' occurs twice",
        ),
        (edited(description=3), "description must be text"),
        (edited_class(extra=1), r"classes\[0\]: unknown key 'extra'"),
        (edited_class(name=""), r"classes\[0\]: name is empty"),
        (edited_class(positive=None), r"classes\[0\]: the key 'positive' is missing"),
        (edited_class(positive=[]), r"classes\[0\]: 'Edema': positive holds no prompts"),
        (edited_class(positive=["a", 3]), r"classes\[0\]: 'Edema': positive\[1\] must be text"),
        (edited_class(negative=None), r"classes\[0\] 'Edema': negative holds no prompts"),
        (edited(task="single-label", classes=VALID["classes"][:1]), "at least two"),
        ([1], "expected an object"),
        ("{", "Expecting"),
        ('{"name": "a", "name": "b"}', "the key 'name' occurs twice"),
        ("[" * 100_000, "nested too deep"),
    ],
)
def test_bad_files_are_refused_by_file_and_key(tmp_path, data, message):
    path = write(tmp_path / "bad.json", data)
    with pytest.raises(ValueError, match=message) as error:
        sa.zeroshot.load_prompts(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "not valid YAML"),
        ("name: a\nname: b\n", "the key 'name' occurs twice"),
        ("!!python/object/apply:os.getcwd []\n", "not valid YAML"),
        ("", "expected an object"),
        # Each level doubled the time, or the value.
        ("? " * 150 + "a", "line 1: a key must be a text"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n", r"aliases \(\*a\) are not read"),
        ("[" * 5000, "nested too deep"),
    ],
)
def test_bad_yaml_is_refused_and_runs_nothing(tmp_path, text, message):
    pytest.importorskip("yaml")
    path = write(tmp_path / "bad.yaml", text)
    with pytest.raises(ValueError, match=message) as error:
        sa.zeroshot.load_prompts(path)
    assert str(path) in str(error.value)


def test_other_files_and_names(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        sa.zeroshot.load_prompts(tmp_path / "none.json")
    with pytest.raises(FileNotFoundError, match="rsna_pneumonia, vindr_cxr"):
        sa.zeroshot.load_prompts("vindr")
    (tmp_path / "latin.json").write_bytes(b'{"name": "\xe9"}')
    with pytest.raises(ValueError, match=r"latin\.json"):
        sa.zeroshot.load_prompts(tmp_path / "latin.json")


def test_sets_made_in_python_are_checked_too():
    with pytest.raises(TypeError, match=r"classes\[0\] must be a ClassPrompts"):
        sa.zeroshot.PromptSet("a", "multi-label", ({"name": "b"},))  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="name must be text"):
        sa.zeroshot.ClassPrompts(3, ("a",))  # pyright: ignore[reportArgumentType]
    made = sa.zeroshot.PromptSet(
        "a", "multi-label", (sa.zeroshot.ClassPrompts("b", ("c",), ("d",)),)
    )
    assert sa.zeroshot.prompt_texts(made).texts == ("c", "d")
    with pytest.raises(AttributeError):
        made.name = "z"  # pyright: ignore[reportAttributeAccessIssue]


def test_embeddings_must_fit_the_set():
    prompt_set = sa.zeroshot.load_prompts("rsna_pneumonia")
    embeddings = np.random.default_rng(0).standard_normal((10, 4)).astype(np.float32)
    prompts = sa.zeroshot.embedded_prompts(prompt_set, embeddings)
    assert (prompts.names, prompts.task) == (("Pneumonia",), "multi-label")
    assert prompts.embeddings.dtype == np.float32
    np.testing.assert_array_equal(prompts.positive, [1] * 5 + [0] * 5)
    with pytest.raises(ValueError, match="must have 10 rows"):
        sa.zeroshot.embedded_prompts(prompt_set, embeddings[:-1])
    with pytest.raises(TypeError, match="floating-point"):
        sa.zeroshot.embedded_prompts(prompt_set, np.ones((10, 4), int))
    embeddings[3, 1] = np.nan
    with pytest.raises(ValueError, match="first in row 3"):
        sa.zeroshot.embedded_prompts(prompt_set, embeddings)
