"""transformers: its Auto classes, `pipeline` and `Trainer` take a folder of ours as it stands, after this import.

    import stm.integrations.transformers  # registers the type
    from transformers import pipeline

    pipeline("image-classification", model="vim-digits-stm40")("digit.png")

The `config.json` of a folder has no `model_type`, and no folder gets one: its bytes are held by digests. It has
`pretrained_cfg`, by which transformers takes it for a model of timm (`transformers.utils.generic.is_timm_config_dict`).
So the config class of timm's models is registered anew: it hands a document of ours to `StmConfig`, and every other one
to the class of transformers. Reading and writing go through `stm.load` and `stm.saving`: there is no second format, and
no code of a repository is run.
"""

import copy
import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    BatchFeature,
    PreTrainedConfig,
    PreTrainedModel,
    TimmWrapperConfig,
)
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import make_flat_list_of_images
from transformers.modeling_outputs import ImageClassifierOutput

from stm.artifact import atomic
from stm.artifact import folder as artifact
from stm.artifact.scratch import scratch
from stm.codec import decode, encode
from stm.config import Config, Preprocess
from stm.config_file import FORMAT, class_names, from_json, to_json
from stm.errors import UsageError
from stm.inputs import preprocess
from stm.loading import open_classifier
from stm.model.initialize import draw_head, initialize
from stm.model.vim import ViM
from stm.options import ModelOptions
from stm.saving import save

PROCESSOR = "preprocessor_config.json"  # as transformers names it
# Arguments of `from_pretrained` that say where files are cached, or how the weights are made: ours are read in one way.
ELSEWHERE = {
    "cache_dir": "set HF_HUB_CACHE",
    "force_download": "remove the repository from the cache: hf cache rm",
    "local_files_only": "set HF_HUB_OFFLINE=1",
    "proxies": "set HTTPS_PROXY",
    "subfolder": "give the folder itself",
    "variant": "give the folder that holds those weights",
    "quantization_config": "stm compress --dtype int8",
    "state_dict": "call load_state_dict on the model",
}


class StmConfig(PreTrainedConfig):
    """The config of a folder that stm wrote, for transformers.

    Args:
        document: `config.json` as stm wrote it, the truth of the model; the other fields repeat it under the names of
            transformers.
    """

    model_type = "stm"
    document: dict[str, Any] | None = None
    image_size: int | list[int] | None = None
    num_channels: int | None = None
    hidden_size: int | None = None
    num_hidden_layers: int | None = None

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        document, rest = super().get_config_dict(*args, **kwargs)
        return (document | {"model_type": cls.model_type} if is_ours(document) else document), rest

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Return the config of a `config.json`, or raise ArtifactError if it says stm and is not what stm writes."""
        if is_ours(config_dict):
            config_dict = _fields({key: value for key, value in config_dict.items() if key != "model_type"})
        return super().from_dict(config_dict, **kwargs)

    @property
    def vim(self) -> Config:
        """The config of the model itself, as the folder has it."""
        if self.document is None:
            raise UsageError("this StmConfig describes no model", "read one: AutoConfig.from_pretrained(FOLDER)")
        return from_json(self.document)


class _TimmOrOurs(TimmWrapperConfig):
    """What `AutoConfig` asks for a `config.json` with `pretrained_cfg`: ours, or that of a model of timm."""

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        return (StmConfig if is_ours(config_dict) else TimmWrapperConfig).from_dict(config_dict, **kwargs)


def is_ours(document: Mapping[str, Any]) -> bool:
    """Return whether a `config.json` says that stm wrote it."""
    return document.get("format") == FORMAT


def _fields(document: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a StmConfig from the document of a folder."""
    config = from_json(document)
    labels = dict(enumerate(class_names(config)))
    return {
        "document": document,
        "architectures": [StmForImageClassification.__name__],
        "id2label": labels,
        "label2id": {name: index for index, name in labels.items()},
        "image_size": encode(config.model.image_size),
        "num_channels": config.model.in_chans,
        "hidden_size": config.model.d_model,
        "num_hidden_layers": config.model.depth,
    }


class StmImageProcessor(BaseImageProcessor):
    """Pictures as `stm predict` and `stm eval` give them to a model: resized, cropped at the center, normalised.

    Args:
        preprocessing: the key of that name in `config.json`.
    """

    model_input_names: ClassVar[list[str]] = ["pixel_values"]

    def __init__(self, preprocessing: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        prep = Preprocess() if preprocessing is None else decode(Preprocess, preprocessing, "preprocessing")
        self.preprocessing: dict[str, Any] = encode(prep)

    @classmethod
    def get_image_processor_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        kwargs.pop("image_processor_filename", None)
        try:  # the folder's own config first: it is the truth, also if somebody saved a processor beside it
            document, rest = super().get_image_processor_dict(
                pretrained_model_name_or_path, image_processor_filename=artifact.CONFIG, **kwargs
            )
        except OSError:
            return super().get_image_processor_dict(pretrained_model_name_or_path, **kwargs)
        return ({"preprocessing": from_json(document).preprocessing} if is_ours(document) else document), rest

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        prep = image_processor_dict.get("preprocessing")
        if isinstance(prep, Preprocess):
            image_processor_dict = image_processor_dict | {"preprocessing": encode(prep)}
        return super().from_dict(image_processor_dict, **kwargs)

    def preprocess(self, images: Any, return_tensors: str | None = None, **kwargs: Any) -> BatchFeature:
        """Return `pixel_values` (B, C, H, W), float32, of Pillow images, or of arrays or tensors in uint8.

        Raises:
            UsageError: an argument that would change the preprocessing, which is the model's, or another kind of image.
            DataError: an image that the model cannot take.
        """
        given = [name for name, value in kwargs.items() if value is not None]
        if given:
            raise UsageError(
                f"StmImageProcessor takes no {given[0]}: a folder's preprocessing is that which it was measured with",
                "preprocess the images yourself, and give the model pixel_values",
            )
        prep: Preprocess = decode(Preprocess, self.preprocessing, "preprocessing")
        values = preprocess([_picture(each) for each in make_flat_list_of_images(images)], prep)
        return BatchFeature({"pixel_values": values}, tensor_type=return_tensors)


def _picture(image: Any) -> Any:
    """Return an array or a tensor of pixels as a Pillow image; anything else as it is."""
    if not hasattr(image, "dtype"):
        return image
    from transformers.image_transforms import to_pil_image

    if str(image.dtype).removeprefix("torch.") != "uint8":
        raise UsageError(f"an image is of {image.dtype}, expected uint8 from 0 to 255, or a Pillow image")
    return to_pil_image(image, do_rescale=False)


class StmForImageClassification(PreTrainedModel):
    """A ViM of stm, dense or compressed, as a model of transformers. The model itself is `vim`.

    Args:
        config: of a dense model, whose weights are then drawn; `from_pretrained` reads any.
        vim: the model, if there is one.
    """

    config_class = StmConfig
    base_model_prefix = "vim"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    accepts_loss_kwargs = False  # `Trainer` divides the loss itself if it accumulates gradients

    def __init__(self, config: StmConfig, vim: ViM | None = None) -> None:
        super().__init__(config)
        self.vim = _drawn(config) if vim is None else vim
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Leave the weights as they are: `ViM` has its own, read or drawn."""

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, return_dict: bool | None = None
    ) -> ImageClassifierOutput | tuple[Tensor, ...]:
        """Return the logits (B, classes), and the loss if labels are given.

        Args:
            pixel_values: (B, C, H, W), as `StmImageProcessor` makes them.
            labels: (B,), the index of each image's class.

        Raises:
            UsageError: images of another shape, dtype or device than the model takes.
        """
        logits = self.vim(pixel_values)
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        output = ImageClassifierOutput(loss=loss, logits=logits)
        return output if return_dict in (None, True) else output.to_tuple()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *args: Any,
        config: StmConfig | None = None,
        ignore_mismatched_sizes: bool = False,
        dtype: str | torch.dtype | None = "auto",
        device_map: Any = None,
        revision: str | None = None,
        token: str | None = None,
        **kwargs: Any,
    ) -> "StmForImageClassification":
        """Return the model of a folder that stm wrote, here or on the Hub, in evaluation mode.

        Args:
            config: what `AutoConfig` returned: other labels than the folder's name the classes anew, or ask for
                another number of them.
            ignore_mismatched_sizes: draw a new head if the number of classes differs.
            dtype: of the weights of the matrix products; "auto": what is stored.
            device_map: one device: "cpu", "cuda", "auto" or {"": device}.
            revision, token: of a repository.

        Raises:
            StmError: as `stm.load`; or the model is a backbone without a head.
            UsageError: an argument that this type does not take, or another number of classes without
                `ignore_mismatched_sizes`.
        """
        for name, instead in ELSEWHERE.items():
            if kwargs.get(name):
                raise UsageError(f"{cls.__name__}.from_pretrained takes no {name}", instead)
        dtype = kwargs.get("torch_dtype") or dtype
        options = ModelOptions(
            revision=None if os.path.isdir(pretrained_model_name_or_path) else revision,
            token=token if isinstance(token, str) else None,
            device=_device(device_map),
            dtype=None if dtype in (None, "auto") else str(dtype).removeprefix("torch."),
        )
        # A path, if it is one: `vim-s` is a short name for stm, and names the folder for transformers.
        name = str(pretrained_model_name_or_path)
        vim = open_classifier(Path(name) if os.path.isdir(name) else name, options)
        if config is None:
            config = StmConfig.from_dict(to_json(vim.config), name_or_path=name)
        model = cls(config, _with_labels(vim, config, draw=ignore_mismatched_sizes))
        model.config.dtype = model.dtype
        return model.eval()

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Take the tensors of a folder, whose names have no prefix, or those of this model."""
        return super().load_state_dict(
            {name if name.startswith("vim.") else f"vim.{name}": value for name, value in state_dict.items()},
            *args,
            **kwargs,
        )

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Write the folder that `stm` and this class read: weights, `config.json` and card, and nothing else.

        If other files are there, as in a folder of `Trainer`, only those of the model are replaced.

        Args:
            state_dict: the tensors to write; by default those of the model.

        Raises:
            StmError: the folder cannot be written.
        """
        if not is_main_process:
            return
        _with_labels(self.vim, self.config, draw=False)
        vim = self.vim
        if state_dict is not None:
            vim = copy.deepcopy(vim)
            vim.load_state_dict({name.removeprefix("vim."): tensor for name, tensor in state_dict.items()})
        folder = Path(save_directory)
        others = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        if others - {Path(name).parts[0] for name in artifact.FILES}:
            with scratch("stm-transformers") as inside:
                vim.config = save(vim, inside / folder.resolve().name)
                _move(inside / folder.resolve().name, folder)
        else:
            vim.config = save(vim, folder, force=True)
        self.config.document = to_json(vim.config)
        if push_to_hub:
            self.push_to_hub(kwargs.get("repo_id") or folder.resolve().name, token=kwargs.get("token"))

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Write the model to a repository of the Hub; see `ViM.push_to_hub`, whose arguments these are."""
        return _with_labels(self.vim, self.config, draw=False).push_to_hub(repo_id, **kwargs)


def _device(device_map: Any) -> str:
    """Return the one device that a `device_map` names: transformers' default is the processor."""
    if isinstance(device_map, Mapping):
        device_map = device_map.get("") if set(device_map) == {""} else device_map
    if device_map is None:
        return "cpu"
    if isinstance(device_map, int):
        return f"cuda:{device_map}"
    if not isinstance(device_map, str | torch.device):
        raise UsageError(f"device_map is {device_map!r}, expected one device: a ViM is not split", 'device_map="cuda"')
    return str(device_map)


def _drawn(config: StmConfig) -> ViM:
    """Return a dense model with drawn weights; a compressed one is refused, as floats of it follow from weights."""
    if config.vim.schedule.steps:
        raise UsageError(
            "the config is that of a compressed model, whose merges need its weights",
            "use from_pretrained, or train a dense model and compress it",
        )
    return _with_labels(initialize(ViM(dataclasses.replace(config.vim, files={}, measured=()))), config, draw=True)


def _with_labels(vim: ViM, config: StmConfig, *, draw: bool) -> ViM:
    """Give a model, in place, the classes that a config of transformers names, and return the model.

    Args:
        draw: whether a new head is drawn if their number differs.
    """
    labels = config.id2label or {}
    names = tuple(labels[index] for index in sorted(labels))
    if names == class_names(vim.config):
        return vim
    if len(names) != vim.config.num_classes:
        if not draw:
            raise UsageError(
                f"{len(names)} labels are asked for, but the model has {vim.config.num_classes} classes",
                "ignore_mismatched_sizes=True draws a new head",
            )
        draw_head(vim, len(names))
    vim.config = dataclasses.replace(vim.config, label_names=names)
    return vim


def _move(model: Path, folder: Path) -> None:
    """Move a model's files among others. The weights first: after a kill in between, reading says that they changed."""
    for name in artifact.FILES:
        path = folder / name
        if (model / name).is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic.drafted(path) as draft:
                draft.write_bytes((model / name).read_bytes())
        else:
            path.unlink(missing_ok=True)


# `exist_ok`: the import may run twice in a notebook, and the class of timm's models is there already.
AutoConfig.register(StmConfig.model_type, StmConfig, exist_ok=True)
AutoConfig.register(TimmWrapperConfig.model_type, _TimmOrOurs, exist_ok=True)
AutoModelForImageClassification.register(StmConfig, StmForImageClassification, exist_ok=True)
AutoImageProcessor.register(
    StmConfig,
    image_processor_classes={"pil": StmImageProcessor, "torchvision": StmImageProcessor},
    exist_ok=True,
)
