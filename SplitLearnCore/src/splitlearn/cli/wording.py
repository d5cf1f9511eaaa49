"""What the packages say, in the words of a command: they name arguments of Python, and its user types options."""

WORDS = {
    "give tls=True, or tls=ClientTLS(ca=...) for a certificate of your own, or insecure=True to send it all the same": (
        "give --tls, or --tls-ca for a certificate of your own"
    ),
    "leave tls out, or start it with tls=ServerTLS(...)": (
        "leave --tls and the files of --tls-… out, or start it with --tls-certificate and --tls-key"
    ),
    ", or say it with ClientTLS(server_name=...)": "",
    "with tls=ClientTLS(ca=...)": "with --tls-ca",
    "(tls=True or tls=ClientTLS(ca=...))": "(--tls or --tls-ca)",
    "(ClientTLS(certificate=..., key=...))": "(--tls-certificate and --tls-key)",
    "(token=...)": "(--token)",
    "(port=0 takes any that is free)": "(--port 0 takes any that is free)",
    "expected model= to be one of": "expected --trunk-model to be one of",
    "name one of these with model=": "name one of these with --trunk-model",
    "give both sides the same revision= (splitlearn serve --revision)": "give both sides the same --revision",
    "train an adapter (lora=LoraConfig(...)), leave the trunk out of train=, or": (
        "train an adapter (--lora-rank 1 or more), leave the trunk out of --parts, or"
    ),
    "with allow_full_training": "with --allow-full-training",
    "or give the server more max_trainings": "or start the server with more --max-trainings",
    "target_modules=": "--lora-targets ",
    "train with recompute=True, with smaller batches, or with fewer forwards before their backward (forwards that will "
    "have none belong under torch.no_grad())": "train with --recompute 1, or a smaller --batch-size or --block-size",
    "lower the rate, or raise max_in_a_row": "or lower --learning-rate",
    "run.resume(tag) goes on from a checkpoint": "--resume goes on from a checkpoint",
    "raise the block size as far as the model goes": "raise --block-size as far as the model goes",
    "go on with the arguments that it was begun with, or begin another": (
        "go on with the options that it was begun with, or begin another in another --output"
    ),
    "send a smaller batch, or a long sequence in several steps of a session, or raise max_message_bytes at the client "
    "and at the server": "take a smaller --batch-size or --block-size, or a shorter prompt",
    "send a smaller batch, or raise max_message_bytes on both sides": "take a smaller --batch-size or --block-size",
    "with a smaller batch or shorter steps, or raise max_message_bytes on both sides": (
        "with a smaller --batch-size or --block-size"
    ),
}
"""Phrases of messages, with what stands in their place; the longer ones before those that they hold."""


def in_options(message: str) -> str:
    """Return a message with the options of the command line in place of arguments of Python."""
    for phrase, words in WORDS.items():
        message = message.replace(phrase, words)
    return message
