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

import torch
from torch import Tensor
from transformers import set_seed
from transformers.utils import logging

from modeling_densevlm import CategoryEmbeddings, CategorySet, DenseVLMModel, DenseVLMProcessor
from modeling_densevlm.categories import TEMPLATES, encoder_fingerprint

from .arguments import Arguments, MethodArguments, parse_arguments, save_recipe
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
        save_recipe(arguments, Path(args.output_dir) / "recipe.yaml")
    initial = trained_parameters(trainer.model, copied=True) if args.ensemble_alpha < 1 else {}
    trainer.train(resume_from_checkpoint=checkpoint)
    mix_weights(trainer.model, initial, args.ensemble_alpha)
    trainer.save_model()
    trainer.save_state()
    if trainer.skipped:
        logger.warning(f"{len(trainer.skipped)} images were skipped by this process; the log names them.")
    logger.info(f"{model_args.model} trained by {args.method}: saved in {args.output_dir}")
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
    )
    processor = load_processor(model_args.model, data_args.image_size)
    if args.method == "clipself":
        trainer_class, extras, teacher_processor = CLIPSelfTrainer, {"teacher": copy.deepcopy(model)}, None
    else:
        trainer_class, (extras, teacher_processor) = DenseVLMTrainer, prepare_teacher(arguments, model, processor)
    freeze(model, model_args.trained_blocks)
    dataset = RegionDataset(
        list_images(data_args.images, data_args.annotations, data_args.max_samples),
        processor.image_processor,
        teacher_processor.image_processor if differ(processor, teacher_processor) else None,
        max_grid=data_args.max_grid,
        crops=data_args.crops if args.method == "clipself" else 0,
        seed=args.seed,
    )
    check_size(dataset, args)
    return trainer_class(
        model=model,
        args=args,
        train_dataset=dataset,
        data_collator=RegionCollator(dataset),
        processing_class=processor,
        **extras,
    )


def prepare_teacher(arguments: Arguments, model: DenseVLMModel, processor: DenseVLMProcessor):
    """The teacher, its processor, and the categories in both models' spaces."""
    model_args, data_args, args = arguments
    if model_args.teacher is None:
        raise SystemExit("`teacher` is missing: DenseVLM learns from a P-VLM (a folder or a Hub name).")
    categories = CategorySet.load(data_args.categories)
    categories.require_flags("training")
    teacher = DenseVLMModel.from_pretrained(
        model_args.teacher, dtype=torch.float32, attn_implementation=model_args.attn_implementation
    )
    teacher_processor = load_processor(model_args.teacher, data_args.teacher_image_size)
    embeddings = {
        f"{role}_embeddings": category_embeddings(arguments, role, categories, tower, its_processor)
        for role, tower, its_processor in (("student", model, processor), ("teacher", teacher, teacher_processor))
    }
    teacher = teacher.to(getattr(torch, model_args.teacher_dtype))  # after its texts were embedded in float32
    return {"teacher": teacher, "contrast": args.contrast_matrix, **embeddings}, teacher_processor


def category_embeddings(
    arguments: Arguments, role: str, categories: CategorySet, model: DenseVLMModel, processor: DenseVLMProcessor
) -> CategoryEmbeddings:
    """Those of the given file, checked against the categories and the model, or computed and kept with the run."""
    _, data_args, args = arguments
    file = getattr(data_args, f"{role}_embeddings")
    if file is None:
        embeddings = CategoryEmbeddings.compute(
            categories, model.to(args.device).eval(), processor.tokenizer, TEMPLATES[data_args.templates]
        )
        if args.process_index == 0:
            embeddings.save(Path(args.output_dir) / f"{role}_embeddings.safetensors")
        return embeddings
    embeddings = CategoryEmbeddings.load(file)
    encoder = None if model.text_model is None else encoder_fingerprint(model, processor.tokenizer)
    embeddings.check(categories, model.config.projection_dim, encoder, source=f"`{role}_embeddings` {file}")
    return embeddings


def load_processor(source: str, image_size: int | None) -> DenseVLMProcessor:
    processor = DenseVLMProcessor.from_pretrained(source)
    if image_size is not None:
        processor.image_processor.size = {"longest_edge": image_size}
    return processor


def differ(processor: DenseVLMProcessor, other: DenseVLMProcessor | None) -> bool:
    """Whether two towers see an image in different pixels."""
    keys = ("size", "image_mean", "image_std")
    return other is not None and any(
        getattr(processor.image_processor, key) != getattr(other.image_processor, key) for key in keys
    )


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


def check_size(dataset: RegionDataset, args: MethodArguments) -> None:
    batch = args.per_device_train_batch_size * args.world_size
    if args.dataloader_drop_last and len(dataset) < batch:
        raise SystemExit(
            f"{len(dataset)} images make no batch of {batch} (`per_device_train_batch_size` "
            f"{args.per_device_train_batch_size} on {args.world_size} processes, `dataloader_drop_last`)."
        )


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
    main()
