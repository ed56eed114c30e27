"""
Trains a dense VLM. One program, however it is started:

    python -m training.train training/recipes/coco.yaml [--key value ...]
    accelerate launch -m training.train training/recipes/coco.yaml [--key value ...]
    torchrun --nproc_per_node 8 -m training.train training/recipes/coco.yaml [--key value ...]
"""

import copy
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from transformers import PreTrainedTokenizerBase, set_seed
from transformers.utils import logging

from modeling_densevlm import (
    CategoryEmbeddings,
    CategorySet,
    DenseVLMImageProcessor,
    DenseVLMModel,
    DenseVLMProcessor,
)
from modeling_densevlm.categories import TEMPLATES, encoder_fingerprint
from modeling_densevlm.processing_densevlm import load_processing

from .arguments import Arguments, MethodArguments, parse_arguments, resolved_recipe, save_recipe
from .clipself import CLIPSelfTrainer
from .data import RegionCollator, RegionDataset, list_images
from .trainer import DenseTrainer, DenseVLMTrainer


logger = logging.get_logger(__name__)


def main(argv: Sequence[str] | None = None) -> DenseTrainer:
    """Runs a recipe from the first image to the saved folder; returns the trainer."""
    arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
    model_args, _, args = arguments
    checkpoint = find_checkpoint(args)
    set_seed(args.seed)
    trainer = build_trainer(arguments)
    if trainer.is_world_process_zero():
        images = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        print(f"{args.world_size} processes, {images} images a step")
        recipe = Path(args.output_dir) / "recipe.yaml"
        if checkpoint is not None:
            warn_of_changes(arguments, recipe)
        save_recipe(arguments, recipe)
    initial = trained_parameters(trainer.model, copied=True) if args.ensemble_alpha < 1 else {}
    trainer.train(resume_from_checkpoint=checkpoint)
    mix_weights(trainer.model, initial, args.ensemble_alpha)
    trainer.save_model()
    trainer.save_state()
    kept = [entry["regions_kept"] for entry in trainer.state.log_history if "regions_kept" in entry]
    if kept and not any(kept):
        logger.warning(
            f"Nothing was learned: no region had a best teacher probability above `threshold` {args.threshold}. Is "
            "the teacher trained, and `temperature` that of its logits?"
        )
    if trainer.skipped:
        logger.warning(f"{len(trainer.skipped)} images were skipped by this process; the log names them.")
    if trainer.is_world_process_zero():
        print(f"{model_args.model}, trained by {args.method}: saved in {args.output_dir}")
    trainer.accelerator.wait_for_everyone()  # a rank that ends while the first is saving would end it, too
    return trainer


def find_checkpoint(args: MethodArguments) -> str | None:
    """The checkpoint to resume from; a folder with checkpoints is never trained over by accident."""
    last = last_checkpoint(Path(args.output_dir))
    wanted = args.resume_from_checkpoint
    if wanted in (None, "False", "false"):
        if last is not None:
            raise SystemExit(
                f"{args.output_dir} holds the checkpoints of a run. Go on with `--resume_from_checkpoint last`, or "
                "give another `--output_dir`."
            )
        return None
    if wanted in ("last", "True", "true"):
        if last is None:
            raise SystemExit(f"`--resume_from_checkpoint {wanted}`: there is no checkpoint in {args.output_dir}.")
        return last
    if not Path(wanted).is_dir():
        raise SystemExit(f"`--resume_from_checkpoint`: there is no folder {wanted}.")
    return wanted


def warn_of_changes(arguments: Arguments, recipe: Path) -> None:
    """Says which values of a resumed run differ from those it began with."""
    before = yaml.safe_load(recipe.read_text()) if recipe.is_file() else {}
    after = resolved_recipe(arguments)
    for key in sorted(before.keys() | after.keys()):
        if before and before.get(key) != after.get(key):
            logger.warning(f"Resumed with another `{key}` than before: {before.get(key)} → {after.get(key)}")


def last_checkpoint(folder: Path) -> str | None:
    """The newest complete checkpoint. Its `trainer_state.json` is written last: without it, saving was cut short."""
    complete = []
    for state in folder.glob("checkpoint-*/trainer_state.json"):
        try:
            complete.append((json.loads(state.read_text())["global_step"], str(state.parent)))
        except (json.JSONDecodeError, KeyError, UnicodeDecodeError):
            logger.warning(f"{state.parent} is not complete and is passed over.")
    return max(complete)[1] if complete else None


def build_trainer(arguments: Arguments) -> DenseTrainer:
    """Everything a run consists of, checked before the first step."""
    model_args, data_args, args = arguments
    model = DenseVLMModel.from_pretrained(
        model_args.model, dtype=torch.float32, attn_implementation=model_args.attn_implementation
    ).eval()
    image_processor, tokenizer = load_at_size(model_args.model, data_args.image_size)
    files = list_images(data_args.images, data_args.annotations, data_args.max_samples)
    check_size(len(files), args)
    freeze(model, model_args.trained_blocks)
    if args.method == "clipself":
        trainer_class, extras, teacher_image_processor = CLIPSelfTrainer, {"teacher": copy.deepcopy(model)}, None
    else:
        trainer_class = DenseVLMTrainer
        extras, teacher_image_processor = prepare_teacher(arguments, model, tokenizer)
        if not differ(image_processor, teacher_image_processor):
            teacher_image_processor = None
    dataset = RegionDataset(
        files,
        image_processor,
        teacher_image_processor,
        max_grid=data_args.max_grid,
        crops=data_args.crops if args.method == "clipself" else 0,
        seed=args.seed,
    )
    check_readable(dataset)
    warn_of_remainder("image_size", image_processor, model)
    if teacher_image_processor is not None:
        warn_of_remainder("teacher_image_size", teacher_image_processor, extras["teacher"])
    return trainer_class(
        model=model,
        args=args,
        train_dataset=dataset,
        data_collator=RegionCollator(dataset),
        processing_class=image_processor if tokenizer is None else DenseVLMProcessor(image_processor, tokenizer),
        **extras,
    )


def prepare_teacher(
    arguments: Arguments, model: DenseVLMModel, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[dict[str, Any], DenseVLMImageProcessor]:
    """What [`DenseVLMTrainer`] takes: the teacher, categories in both spaces; and the teacher's image processor."""
    model_args, data_args, args = arguments
    if model_args.teacher is None:
        raise SystemExit("`teacher` is missing: DenseVLM learns from a P-VLM (a folder or a Hub name).")
    categories = CategorySet.load(data_args.categories)
    categories.require_flags("training")
    teacher = DenseVLMModel.from_pretrained(
        model_args.teacher, dtype=torch.float32, attn_implementation=model_args.attn_implementation
    )
    image_processor, teacher_tokenizer = load_at_size(model_args.teacher, data_args.teacher_image_size)
    extras = {
        "student_embeddings": category_embeddings(arguments, "student", categories, model, tokenizer),
        "teacher_embeddings": category_embeddings(arguments, "teacher", categories, teacher.eval(), teacher_tokenizer),
        "teacher": teacher.to(getattr(torch, model_args.teacher_dtype)),  # after its texts were embedded in float32
        "contrast": args.contrast_matrix,
    }
    return extras, image_processor


def category_embeddings(
    arguments: Arguments,
    role: str,
    categories: CategorySet,
    model: DenseVLMModel,
    tokenizer: PreTrainedTokenizerBase | None,
) -> CategoryEmbeddings:
    """
    Those of the given file, checked against the categories and the model; else those that the run has kept, if they
    fit; else computed, by the first process, and kept with the run.
    """
    _, data_args, args = arguments
    templates = TEMPLATES[data_args.templates]
    has_text = model.text_model is not None and tokenizer is not None
    encoder = encoder_fingerprint(model, tokenizer) if has_text else None

    def load(file: Path, compared: Sequence[str] | None) -> CategoryEmbeddings:
        embeddings = CategoryEmbeddings.load(file)
        source = f"`{role}_embeddings` {file}"
        embeddings.check(categories, model.config.projection_dim, encoder, compared, source)
        return embeddings

    given = getattr(data_args, f"{role}_embeddings")
    if given is not None:
        return load(Path(given), None)
    if not has_text:
        raise SystemExit(f"The {role} has no text tower or no tokenizer: give its `{role}_embeddings`.")
    kept = Path(args.output_dir) / f"{role}_embeddings.safetensors"
    with args.main_process_first(local=False, desc=f"{role} embeddings"):
        try:
            return load(kept, templates)
        except (FileNotFoundError, ValueError):
            embeddings = CategoryEmbeddings.compute(categories, model.to(args.device), tokenizer, templates)
            if args.process_index == 0:
                embeddings.save(kept)
            return embeddings


def load_at_size(source: str, image_size: int | None) -> tuple[DenseVLMImageProcessor, PreTrainedTokenizerBase | None]:
    """Image processor and tokenizer of a model; the former at `image_size` where one is given."""
    image_processor, tokenizer = load_processing(source)
    if image_size is not None:
        image_processor.size = {"longest_edge": image_size}
    return image_processor, tokenizer


def differ(first: DenseVLMImageProcessor, second: DenseVLMImageProcessor) -> bool:
    """Whether two towers see an image in different pixels."""
    return any(getattr(first, key) != getattr(second, key) for key in ("size", "image_mean", "image_std"))


def freeze(model: DenseVLMModel, trained_blocks: int | None) -> None:
    """
    Leaves the last `trained_blocks` blocks trainable (all by default), less what the dense path does not use of them.
    Patch embedding, positions, class token, final norm, projection and the text tower stay as they are.
    """
    blocks = model.vision_model.trainable_blocks()
    count = len(blocks) if trained_blocks is None else trained_blocks
    if not 1 <= count <= len(blocks):
        raise SystemExit(f"`trained_blocks` is 1 to {len(blocks)} for this model, got {trained_blocks}.")
    model.requires_grad_(False)
    for parameter in (p for block in blocks[-count:] for p in block):
        parameter.requires_grad_(True)


def warn_of_remainder(key: str, image_processor: DenseVLMImageProcessor, model: DenseVLMModel) -> None:
    """A side that is no multiple of a tower's cells is cut: boxes are then other places for it than for the other."""
    side, cell = image_processor.size["longest_edge"], model.vision_model.stride
    if side % cell:
        logger.warning(
            f"`{key}` {side} is no multiple of {cell} pixels: the map covers {side // cell * cell} of them, and a box "
            f"is another place there than for a tower that is given whole cells. Give {side // cell * cell} or "
            f"{(side // cell + 1) * cell}."
        )


def check_size(images: int, args: MethodArguments) -> None:
    batch = args.per_device_train_batch_size * args.world_size
    if args.dataloader_drop_last and images < batch:
        raise SystemExit(
            f"{images} images make no batch of {batch} (`per_device_train_batch_size` "
            f"{args.per_device_train_batch_size} on {args.world_size} processes, `dataloader_drop_last`). Give a "
            "smaller `per_device_train_batch_size`."
        )


def check_readable(dataset: RegionDataset, most: int = 100) -> None:
    """Stops where none of the first images can be read: the run would train on nothing."""
    reasons = []
    for index in range(min(len(dataset), most)):
        sample = dataset[index]
        if "skipped" not in sample:
            return
        reasons.append(sample["skipped"])
    raise SystemExit(f"None of the first {len(reasons)} images can be used, e.g. {reasons[0]}")


def trained_parameters(model: DenseVLMModel, copied: bool = False) -> dict[str, Tensor]:
    """The trainable parameters by name; copied to the CPU, or themselves."""
    named = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    return {name: p.cpu().clone() for name, p in named.items()} if copied else named


def mix_weights(model: DenseVLMModel, initial: dict[str, Tensor], alpha: float) -> None:
    """Weight-space ensemble: alpha · trained + (1 - alpha) · initial."""
    for name, parameter in trained_parameters(model).items():
        if name in initial:
            parameter.mul_(alpha).add_(initial[name].to(parameter), alpha=1 - alpha)


if __name__ == "__main__":
    # Without closing the process group, the threads of gloo may outlive the interpreter and abort it.
    main().accelerator.end_training()
