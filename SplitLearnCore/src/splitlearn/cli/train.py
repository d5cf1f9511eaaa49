"""`splitlearn train`: an adapter, or all weights, from a file of text."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from splitlearn.cli.options import DtypeName, Model, Revision, SplitAt, blamed_on, parse_dtype, parse_split_points
from splitlearn.cli.progress import Bar, Lines, has_terminal
from splitlearn.cli.quiet import set_up_logging
from splitlearn.cli.security import Certificate, Key, Token, TrustedCA, UseTLS, connection_options
from splitlearn.errors import OptionError, needing
from splitlearn.model import SplitModelForCausalLM
from splitlearn_core import SplitModel, load_tokenizer
from splitlearn_core.checkpoint.source import locate

if TYPE_CHECKING:
    from splitlearn_core.training.data import TextExamples
    from splitlearn_core.training.trainer import SplitTrainer

LONGEST_BLOCK = 1024
"""Tokens of an example, where the model could take more."""
ADAPTER = "adapter"


def train(
    model: Model = "builtin",
    data: Annotated[
        Path | None,
        typer.Option(
            help="Text to learn from: a .txt, cut into blocks; or a .jsonl with "
            '{"text": …} or {"prompt": …, "completion": …} a line. No default: it has to be given.',
        ),
    ] = None,
    eval_data: Annotated[
        Path | None, typer.Option(help="Text of the same form, only to evaluate on. Default: the last tenth of --data.")
    ] = None,
    trunk: Annotated[
        str | None,
        typer.Option(help="host:port or unix:/path of a trunk server. Default: load the trunk into this process."),
    ] = None,
    trunk_model: Annotated[
        str | None, typer.Option(help="With --trunk: name of the model there. Default: the only one.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Directory for checkpoints, the adapter and curves.png.")] = Path(
        "trained"
    ),
    parts: Annotated[str, typer.Option(help="Which parts train, with commas between.")] = "bottom,trunk,top",
    lora_rank: Annotated[
        int, typer.Option(min=0, help="Rank of the adapter of all linear layers; 0: train all weights.")
    ] = 8,
    lora_alpha: Annotated[int, typer.Option(min=1, help="Scale of the adapter, over its rank.")] = 16,
    lora_dropout: Annotated[float, typer.Option(min=0, max=1, help="Dropout before the adapter.")] = 0.0,
    epochs: Annotated[float, typer.Option(min=0, help="Times through the data.")] = 1.0,
    steps: Annotated[int | None, typer.Option(min=1, help="Updates. Default: as many as --epochs takes.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples in a forward.")] = 4,
    accumulate: Annotated[int, typer.Option(min=1, help="Forwards in an update.")] = 1,
    block_size: Annotated[
        int | None, typer.Option(min=2, help=f"Tokens of an example. Default: the model's, at most {LONGEST_BLOCK}.")
    ] = None,
    learning_rate: Annotated[
        float, typer.Option(min=0, help="Of AdamW, at its highest; it falls to 0 in a line.")
    ] = 2e-4,
    warmup_steps: Annotated[int, typer.Option(min=0, help="Updates until it is that high.")] = 0,
    precision: Annotated[
        str, typer.Option(help="float32; or bf16 or fp16: mixed precision, where the hardware has it.")
    ] = "float32",
    eval_steps: Annotated[
        int | None, typer.Option(min=1, help="Evaluate every so many updates. Default: at the end.")
    ] = None,
    save_steps: Annotated[int, typer.Option(min=1, help="Write a checkpoint every so many updates.")] = 100,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in --output. Default: begin.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the order of the data, dropout, and the adapter's first values.")] = 0,
    report_to: Annotated[
        str, typer.Option(help="tensorboard, trackio or another of transformers' reports, where it is installed.")
    ] = "none",
    reconnect_timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait for a trunk that was lost.")] = 600.0,
    split_points: SplitAt = None,
    dtype: DtypeName = None,
    revision: Revision = None,
    token: Token = None,
    tls: UseTLS = False,
    tls_ca: TrustedCA = None,
    tls_certificate: Certificate = None,
    tls_key: Key = None,
) -> None:
    """Fine-tune a split model; text, token ids and labels stay in this process."""
    set_up_logging("warning")
    if data is None:
        raise OptionError("--data names the text to learn from: a .txt or a .jsonl")
    if precision not in ("float32", "bf16", "fp16"):
        raise OptionError(f"--precision takes float32, bf16 or fp16; got {precision!r}")
    with needing("`splitlearn train` needs peft: pip install 'splitlearn-core[train]'"):
        import peft  # noqa: F401  # looked for before a model is loaded
    # Of two layouts of weights peft chooses the right one and says so, and transformers calls its own old names.
    warnings.filterwarnings("ignore", module=r"peft\.|transformers\.")
    out = Console(highlight=False, soft_wrap=True)
    torch.manual_seed(seed)
    connection = connection_options(token=token, tls=tls, ca=tls_ca, certificate=tls_certificate, key=tls_key)
    connection |= {"model": trunk_model} if trunk_model else {}
    points, chosen_dtype = parse_split_points(split_points), parse_dtype(dtype)
    commit = locate(model, revision).commit
    tokenizer = load_tokenizer(model, commit)
    split = SplitModelForCausalLM.from_pretrained(
        model,
        trunk=trunk,
        split_points=points,
        dtype=chosen_dtype,
        revision=commit,
        connection={**connection, "timings": True} if trunk else None,
    )
    if not resume and any(output.glob("checkpoint-*")):
        raise OptionError(f"--output {output} has checkpoints already: --resume goes on from them; or name another one")
    examples, held_out = read_both(data, eval_data, tokenizer, block_of(split, block_size))
    out.print(f"learning from {len(examples)} examples of {examples.num_tokens} tokens, {len(held_out)} held out")
    with blamed_on("--report-to", report_to):
        trainer = make_trainer(
            split,
            examples,
            held_out,
            tokenizer,
            parts=parts,
            lora={"r": lora_rank, "lora_alpha": lora_alpha, "lora_dropout": lora_dropout},
            output_dir=str(output),
            num_train_epochs=epochs,
            max_steps=steps or -1,
            per_device_train_batch_size=batch_size,
            per_device_eval_batch_size=batch_size,
            gradient_accumulation_steps=accumulate,
            learning_rate=learning_rate,
            warmup_steps=warmup_steps,
            bf16=precision == "bf16",
            fp16=precision == "fp16",
            eval_strategy="steps" if eval_steps else "no",
            eval_steps=eval_steps,
            save_steps=save_steps,
            save_total_limit=2,
            logging_steps=1,
            seed=seed,
            report_to=report_to,
            reconnect_timeout_s=reconnect_timeout,
            use_cpu=split.device.type == "cpu",
            dataloader_pin_memory=False,
            logging_nan_inf_filter=False,
            disable_tqdm=not has_terminal(),
        )
    speak(out, trainer)
    try:
        run(out, trainer, output, resume=resume)
    finally:
        trainer.run.close()
        trainer.run.model.trunk.close()


def run(out: Console, trainer: "SplitTrainer", output: Path, *, resume: bool) -> None:
    """Train, say where everything is, and evaluate."""
    before = trainer.evaluate()["eval_loss"] if not resume else None
    trainer.train(resume_from_checkpoint=resume or None)
    if trainer.run.adapter is not None:
        trainer.save_model(str(output / ADAPTER))
        out.print(f"adapter of the whole model, for PeftModel.from_pretrained: {output / ADAPTER}")
    else:
        trainer.run.save_checkpoint("weights", output)
        out.print(f"what was trained, both sides: {output / 'weights'}")
    trainer.pop_callback(Lines)
    after = trainer.evaluate()["eval_loss"]
    out.print(f"loss on what was held out: {after:.4f}" + ("" if before is None else f", before {before:.4f}"))


def speak(out: Console, trainer: "SplitTrainer") -> None:
    """Have a trainer print lines of ours instead of its dictionaries."""
    from transformers import PrinterCallback, ProgressCallback

    trainer.pop_callback(PrinterCallback)
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(Bar())
    trainer.add_callback(Lines(out))


def block_of(split: SplitModel, asked: int | None) -> int:
    """Return how many tokens an example has at most.

    Raises:
        OptionError: more than the model takes.
    """
    limit = split.max_positions
    if asked is not None and limit is not None and asked > limit:
        raise OptionError(f"--block-size {asked} is more than the {limit} tokens that the model takes")
    return asked or min(LONGEST_BLOCK, limit or LONGEST_BLOCK)


def read_both(
    data: Path, eval_data: Path | None, tokenizer: PreTrainedTokenizerBase, block_size: int
) -> "tuple[TextExamples, TextExamples]":
    """Return what is learned, and what is held out.

    Raises:
        TrainingDataError: a file is not there, empty, or of another form, or too small to hold a tenth of it out.
    """
    from splitlearn_core.training.data import read_examples

    examples = read_examples(data, tokenizer, block_size)
    if eval_data is not None:
        return examples, read_examples(eval_data, tokenizer, block_size)
    return examples.split(data)


def make_trainer(
    split: SplitModel,
    examples: "TextExamples",
    held_out: "TextExamples",
    tokenizer: PreTrainedTokenizerBase,
    *,
    parts: str,
    lora: dict[str, Any],
    **options: Any,
) -> "SplitTrainer":
    """Make the trainer; `lora` of rank 0 trains all weights."""
    from peft import LoraConfig

    from splitlearn_core.training.arguments import SplitTrainingArguments
    from splitlearn_core.training.data import collate
    from splitlearn_core.training.trainer import SplitTrainer

    names = [name.strip() for name in parts.split(",")]
    return SplitTrainer(
        split,
        SplitTrainingArguments(train_parts=names, **options),
        lora=LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM", **lora) if lora["r"] else None,
        train_dataset=examples,
        eval_dataset=held_out,
        data_collator=collate,
        processing_class=tokenizer,
    )
