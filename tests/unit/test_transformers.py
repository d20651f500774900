"""A folder of ours in transformers, as its users call it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import stm
from stm.assets import FOLDER
from stm.commands.predict import predict
from stm.data.open import PHOTOGRAPHS
from stm.errors import UsageError

transformers: Any
ours: Any

DENSE = FOLDER / "vim-digits"
SEED = 5


@pytest.fixture(scope="module", autouse=True)
def imported() -> None:
    """Not when the file is collected, which every process of the tests does: it takes seconds."""
    global transformers, ours
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: extra transformers")
    ours = pytest.importorskip("stm.integrations.transformers")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The embedded model, and the same compressed with every kind of constant, in bfloat16 and without names."""
    base = tmp_path_factory.mktemp("folders")
    small = stm.compress(stm.load(DENSE, device="cpu"), rate=0.4, method="staged")
    small.save_pretrained(base / "small")
    small.cast("bfloat16").save_pretrained(base / "bfloat16")
    return {"dense": DENSE, "small": base / "small", "bfloat16": base / "bfloat16"}


def classifier(folder: Path, **options: Any) -> Any:
    return transformers.AutoModelForImageClassification.from_pretrained(folder, **options)


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 1, 28, 28, generator=torch.Generator().manual_seed(SEED))


@pytest.mark.parametrize("name", ["dense", "small", "bfloat16"])
def test_the_pipeline_answers_as_stm_predict(folders: dict[str, Path], name: str) -> None:
    """Photographs of other sizes than the model's, so that resizing, cropping and grey are in it."""
    pipe = transformers.pipeline("image-classification", model=str(folders[name]))
    photographs = sorted(PHOTOGRAPHS.glob("*.jpg"))
    expected = predict(str(folders[name]), photographs).predictions
    assert len(photographs) == 3
    for answer, prediction in zip(pipe([str(path) for path in photographs]), expected, strict=True):
        assert [each["label"] for each in answer] == [guess.label for guess in prediction.top5]
        assert [each["score"] for each in answer] == pytest.approx(
            [guess.probability for guess in prediction.top5], abs=1e-6
        )


def test_the_folder_stays_as_it_is_and_tells_its_shape(folders: dict[str, Path]) -> None:
    before = (folders["small"] / "config.json").read_bytes()
    config = transformers.AutoConfig.from_pretrained(folders["small"])
    assert (config.model_type, config.num_labels, config.hidden_size, config.num_channels) == ("stm", 10, 32, 1)
    assert config.vim.schedule.steps
    assert (folders["small"] / "config.json").read_bytes() == before
    assert transformers.AutoModelForImageClassification.from_config(
        transformers.AutoConfig.from_pretrained(DENSE)
    ).vim.config.num_classes == len(stm.load(DENSE).config.label_names or ())


def test_models_of_timm_are_left_to_transformers(tmp_path: Path) -> None:
    document = {"architecture": "resnet18", "num_classes": 2, "label_names": ["a", "b"], "pretrained_cfg": {}}
    (tmp_path / "config.json").write_text(json.dumps(document))
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert type(config) is transformers.TimmWrapperConfig
    assert config.id2label == {0: "a", 1: "b"}


def test_labels_give_a_loss_whose_gradient_reaches_every_parameter(folders: dict[str, Path]) -> None:
    model = classifier(folders["small"]).train()
    output = model(pixel_values=images(2), labels=torch.tensor([1, 2]))
    assert output.loss.item() == pytest.approx(
        torch.nn.functional.cross_entropy(output.logits, torch.tensor([1, 2])).item()
    )
    output.loss.backward()
    assert [name for name, each in model.named_parameters() if each.grad is None] == []


@pytest.mark.parametrize("others", [False, True])
def test_what_it_saves_both_load(folders: dict[str, Path], tmp_path: Path, others: bool) -> None:
    """Also among the files of a training run, which stay."""
    model = classifier(folders["small"])
    out = tmp_path / "out"
    if others:
        out.mkdir()
        (out / "optimizer.pt").write_text("state")
    for _ in range(2):  # the second time it replaces its own files
        with torch.no_grad():
            model.vim.head.weight.add_(0.01)
        model.save_pretrained(out)
    x = images(2)
    with torch.inference_mode():
        logits = model(pixel_values=x).logits
        assert torch.equal(classifier(out)(pixel_values=x).logits, logits)
        assert torch.equal(stm.load(out, device="cpu")(x), logits)
    expected = {"README.md", "config.json", "model.safetensors"} | ({"optimizer.pt"} if others else set())
    assert {path.name for path in out.iterdir()} == expected
    config = stm.load(out).config
    assert config.extra["fine_tuned"] == "merged" and config.schedule.steps


def test_other_classes_get_a_new_head(folders: dict[str, Path], tmp_path: Path) -> None:
    labels = {0: "cat", 1: "cup", 2: "gate"}
    model = classifier(folders["small"], id2label=labels, ignore_mismatched_sizes=True)
    assert model(pixel_values=images(2)).logits.shape == (2, 3)
    model.save_pretrained(tmp_path / "three")
    again = stm.load(tmp_path / "three", device="cpu")
    assert again.config.label_names == ("cat", "cup", "gate")
    assert torch.equal(again.layers[3].mixer.in_proj.weight, stm.load(folders["small"]).layers[3].mixer.in_proj.weight)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"id2label": {0: "a", 1: "b"}}, "2 labels are asked for, but the model has 10 classes"),
        ({"device_map": {"vim.head": "cpu", "": "cuda"}}, "expected one device"),
        ({"variant": "fp16"}, "takes no variant"),
    ],
)
def test_what_it_does_not_take_is_refused_in_a_sentence(
    folders: dict[str, Path], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        classifier(folders["small"], **options)


def test_pixels_of_another_kind_are_refused(folders: dict[str, Path]) -> None:
    processor = transformers.AutoImageProcessor.from_pretrained(folders["small"])
    grey = torch.arange(40 * 30, dtype=torch.int64).reshape(1, 40, 30).to(torch.uint8)
    assert processor(images=grey, return_tensors="pt")["pixel_values"].shape == (1, 1, 28, 28)
    with pytest.raises(UsageError, match=r"torch\.float32, expected uint8"):
        processor(images=grey.float())
    with pytest.raises(UsageError, match="takes no do_resize"):
        processor(images=grey, do_resize=False)


def test_a_processor_saved_alone_is_read_again(folders: dict[str, Path], tmp_path: Path) -> None:
    processor = transformers.AutoImageProcessor.from_pretrained(folders["small"])
    processor.save_pretrained(tmp_path)
    again = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    assert again.preprocessing == processor.preprocessing


@pytest.mark.slow(seconds=60)
def test_trainer_measures_trains_and_goes_on(folders: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="Trainer needs accelerate")
    data = [{"pixel_values": image, "labels": index % 10} for index, image in enumerate(images(8))]
    options = transformers.TrainingArguments(
        str(tmp_path / "run"),
        per_device_train_batch_size=4,
        num_train_epochs=2,
        learning_rate=1e-3,
        report_to=[],
        use_cpu=True,
        save_strategy="epoch",
        eval_strategy="epoch",
        load_best_model_at_end=True,
        disable_tqdm=True,
    )
    processor = transformers.AutoImageProcessor.from_pretrained(folders["small"])

    def trainer() -> Any:
        return transformers.Trainer(
            classifier(folders["small"]), options, train_dataset=data, eval_dataset=data, processing_class=processor
        )

    first = trainer()
    before = first.evaluate()["eval_loss"]
    first.train()
    assert first.evaluate()["eval_loss"] < before
    first.save_model()
    x = images(8)
    with torch.inference_mode():
        logits = first.model.eval()(pixel_values=x).logits
        assert torch.equal(stm.load(tmp_path / "run", device="cpu")(x), logits)
    second = trainer()
    second.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    with torch.inference_mode():
        assert torch.equal(second.model.eval()(pixel_values=x).logits, logits)
